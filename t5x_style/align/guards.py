"""When a policy has gone astray: bounds on divergence, entropy, length and score, and what follows.

A bound that is broken for several iterations in a row ends the run or takes it back to a checkpoint
from before, with a heavier KL penalty. None of this is in the paper, which picks checkpoints by
hand; all bounds are off unless set.
"""

import dataclasses
from collections.abc import Mapping

ACTIONS = ("stop", "roll_back")


@dataclasses.dataclass(frozen=True)
class Guards:
    """Bounds on the metrics of iterations.

    Attributes:
      kl_ceiling: greatest mean KL from the reference, in nats a token; None: no bound.
      entropy_floor: least mean entropy of a token, in nats; None: no bound.
      length_ratio: an answer's mean length may grow or shrink by this factor against the first
        iteration; None: no bound.
      score_rise: by so much the mean score may rise above the first iteration's; a score that
        leaves the range of the reward model's training says nothing. None: no bound.
      patience: iterations in a row that break a bound before something is done.
      action: "stop" or "roll_back".
      max_roll_backs: after so many the run stops.
      kl_factor: a roll-back multiplies the KL coefficient by it.
    """

    kl_ceiling: float | None = None
    entropy_floor: float | None = None
    length_ratio: float | None = None
    score_rise: float | None = None
    patience: int = 3
    action: str = "stop"
    max_roll_backs: int = 2
    kl_factor: float = 2.0

    def __post_init__(self) -> None:
        if self.action not in ACTIONS or self.patience < 1:
            raise ValueError(
                f"guards.Guards.action = {self.action!r}, patience = {self.patience}: take one of "
                f"{ACTIONS}, and at least 1"
            )
        if self.length_ratio is not None and self.length_ratio <= 1:
            raise ValueError(
                f"guards.Guards.length_ratio = {self.length_ratio}: must be more than 1"
            )

    def broken(self, first: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
        """Returns a line for each bound that an iteration breaks.

        Args:
          first: metrics of the first iteration: "kl", "entropy", "length", "score".
          now: those of this one.
        """
        lines = []
        if self.kl_ceiling is not None and now["kl"] > self.kl_ceiling:
            lines.append(f"kl {now['kl']:.4f} is above kl_ceiling = {self.kl_ceiling}")
        if self.entropy_floor is not None and now["entropy"] < self.entropy_floor:
            lines.append(f"entropy {now['entropy']:.4f} is below entropy_floor")
        if self.length_ratio is not None:
            ratio = now["length"] / max(first["length"], 1)
            if not 1 / self.length_ratio <= ratio <= self.length_ratio:
                lines.append(f"answers are {ratio:.2f} times as long as at first")
        if self.score_rise is not None and now["score"] - first["score"] > self.score_rise:
            lines.append(f"the score rose by {now['score'] - first['score']:.2f}")
        return lines
