"""The start of a low-rank adaptation from a trained model: its weights, and fresh adapters."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from t5x_style.models import lora
from t5x_style.train import checkpoint, run_folder
from t5x_style.train import state as states
from t5x_style.train.job import InitialRun
from t5x_style.train.state import InitialisesParams, TrainState


@dataclasses.dataclass(frozen=True)
class InitialBase(InitialRun):
    """A run whose weights are the frozen base of an adapted model.

    A run that was adapted itself is merged first.

    Attributes:
      objective: the adapted objective; its params are those of `models.lora`.
      seed: of the adapters' first values.
    """

    mode: str = "params"
    objective: InitialisesParams | None = None
    seed: int = 0

    def load(self, abstract: TrainState, transformation: Any) -> TrainState:
        """Returns the state to start from.

        Raises:
          ValueError: there is no such checkpoint, it is damaged, or it is of another model; or
            this run is no adaptation.
        """
        objective = self.objective
        if objective is None or not lora.is_adapted(abstract.params):
            raise ValueError(
                "initial_base.InitialBase is the start of a run whose job.Job.objective is a "
                "lora.LoRA: set InitialBase.objective to it, or use job.InitialRun"
            )
        folder = Path(self.run_dir) / run_folder.CHECKPOINTS
        path = folder / str(checkpoint.chosen_step(folder, self.step))
        try:
            base = checkpoint.restore_params(path, abstract.params[lora.BASE])
        except checkpoint.DamagedCheckpointError as error:
            raise ValueError(f"{error}; set initial_base.InitialBase.step to an older") from error
        others = {name: leaf for name, leaf in abstract.params.items() if name != lora.BASE}

        def draw(rng: jax.Array) -> Any:
            fresh = nn.unbox(objective.init(rng))
            return {name: fresh[name] for name in others}

        placed = jax.jit(draw, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, others))
        params = {lora.BASE: base, **placed(jax.random.key(self.seed))}
        return states.with_params(params, transformation, abstract)
