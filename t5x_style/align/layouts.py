"""How those models of PPO that do not learn lie over the devices of those that do.

Actor and critic are jobs with a mesh and rules of their own. The other three are read alone: the
copy of the actor that answers are drawn with, the reference, and the reward model.
"""

import dataclasses
from collections.abc import Mapping, Sequence

_Rules = Mapping[str, Sequence[str]] | None


@dataclasses.dataclass(frozen=True)
class Layouts:
    """Rules of the three models, logical axis to mesh axes, over those of a job.

    Attributes:
      sampling_rules: of the sampling copy and its keys and values, over the actor's rules, on the
        actor's mesh; None to lie as the actor trains. With `embed` whole every device keeps all
        weights and nothing is gathered for each token.
      reference_rules: of the reference, over the actor's rules; None to lie as the actor.
      reward_rules: of the reward model, over the critic's rules, on the critic's mesh; None to lie
        as the critic.
      sampled_rows: answers that are decoded together, at most.
    """

    sampling_rules: _Rules = None
    reference_rules: _Rules = None
    reward_rules: _Rules = None
    sampled_rows: int = 64

    def __post_init__(self) -> None:
        if self.sampled_rows < 1:
            raise ValueError(
                f"layouts.Layouts.sampled_rows = {self.sampled_rows}: must be at least 1"
            )
