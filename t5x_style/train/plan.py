"""One run as plain values: what is trained, where it starts, how it is carried out.

From these come the shapes of the state and of the batches, and the compiled steps; running them is
`train.loop`'s affair.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from t5x_style.train import checkpoint, run_folder
from t5x_style.train import state as states
from t5x_style.train.batch import AbstractBatch, abstract_batch
from t5x_style.train.optimizers import AdamW
from t5x_style.train.state import TrainState
from t5x_style.train.step import Objective, Schedule, make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """How a run is carried out; nothing here changes what is learnt.

    Attributes:
      num_microbatches: parts that a batch is taken in, one after another, to save memory.
      log_every_steps: steps between two lines of metrics.
      eval_every_steps: steps between two evaluations; None: only after the last step.
      checkpoint_every_steps: steps between two checkpoints; there is one after the last step too.
      keep_checkpoints: how many of the newest checkpoints are kept.
      max_skipped_steps: so many steps in a row with a gradient that is not finite end the run.
      step_timeout_secs: a process without a finished step for so long ends itself; None: never.
      profile_start_step: first step of a profile, written for TensorBoard; None: no profile.
      profile_num_steps: length of the profile.
      peak_flops_per_sec: of one device, for MFU; None: from `flops.PEAK_FLOPS_PER_SEC`.
    """

    num_microbatches: int = 1
    log_every_steps: int = 10
    eval_every_steps: int | None = None
    checkpoint_every_steps: int = 1000
    keep_checkpoints: int = 3
    max_skipped_steps: int = 10
    step_timeout_secs: float | None = 3600.0
    profile_start_step: int | None = None
    profile_num_steps: int = 3
    peak_flops_per_sec: float | None = None

    def __post_init__(self) -> None:
        for name in (
            "num_microbatches",
            "log_every_steps",
            "checkpoint_every_steps",
            "keep_checkpoints",
            "max_skipped_steps",
            "profile_num_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"plan.LoopSettings.{name} = {getattr(self, name)}: must be at least 1"
                )


@dataclasses.dataclass(frozen=True)
class InitialRun:
    """An earlier run that this one starts from.

    Attributes:
      run_dir: its folder.
      mode: "continue" takes params, optimiser state and step count; "params" takes params alone
        and starts at step 0 with a fresh optimiser.
      step: which of its checkpoints; None for the newest.
    """

    run_dir: str
    mode: str = "continue"
    step: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("continue", "params"):
            raise ValueError(
                f'plan.InitialRun.mode = {self.mode!r}: must be "continue" or "params"'
            )

    def identity(self) -> dict[str, Any]:
        """Returns, as JSON values, which run this is; its key is None while it is not finished."""
        done = run_folder.read_json(Path(self.run_dir) / run_folder.DONE)
        return {"mode": self.mode, "step": self.step, "key": done and done["key"]}

    def load(self, abstract: TrainState, transformation: Any) -> TrainState:
        """Returns the state to start from.

        Raises:
          ValueError: there is no such checkpoint, it is damaged, or it is of another model.
        """
        folder = Path(self.run_dir) / run_folder.CHECKPOINTS
        path = folder / str(checkpoint.chosen_step(folder, self.step))
        try:
            if self.mode == "continue":
                return checkpoint.restore(path, abstract).tree
            params = checkpoint.restore(path, {"params": abstract.params}).tree["params"]
        except checkpoint.DamagedCheckpointError as error:
            raise ValueError(f"{error}; set plan.InitialRun.step to an older step") from error
        return states.with_params(params, transformation, abstract)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One run, ready to be carried out.

    Attributes:
      objective: the loss and its model.
      optimizer: which direction a gradient means.
      schedule: learning rate as a function of the step.
      mesh: the devices.
      total_steps: the run ends when the state has this step.
      batch_size: rows of the global batch.
      length: tokens in a row.
      seed: of the first params and of the objective's random numbers.
      settings: how the run is carried out.
    """

    objective: Objective
    optimizer: AdamW
    schedule: Schedule
    mesh: Mesh
    total_steps: int
    batch_size: int
    length: int
    seed: int
    settings: LoopSettings

    @property
    def eval_batch_size(self) -> int:
        """Rows of a global evaluation batch: one microbatch."""
        return self.batch_size // self.settings.num_microbatches

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        return states.abstract_state(self.objective, self.optimizer.transformation(), self.mesh)

    @functools.cached_property
    def train_batch(self) -> AbstractBatch:
        """Shapes, dtypes and shardings of a global training batch."""
        shapes = self.objective.batch_shapes(self.batch_size, self.length)
        return abstract_batch(shapes, self.mesh, self.settings.num_microbatches)

    @functools.cached_property
    def eval_batch(self) -> AbstractBatch:
        """Shapes, dtypes and shardings of a global evaluation batch."""
        shapes = self.objective.batch_shapes(self.eval_batch_size, self.length)
        return abstract_batch(shapes, self.mesh)

    def compile_train_step(self) -> jax.stages.Compiled:
        """Returns the compiled train step, its state donated."""
        step = make_train_step(
            self.objective,
            self.optimizer.transformation(),
            self.schedule,
            clip_norm=self.optimizer.clip_norm,
            num_microbatches=self.settings.num_microbatches,
            seed=self.seed,
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
        with jax.set_mesh(self.mesh):
            return jitted.lower(self.abstract_state, self.train_batch).compile()

    def compile_eval_step(self) -> jax.stages.Compiled:
        """Returns the compiled evaluation step."""
        jitted = jax.jit(make_eval_step(self.objective))
        with jax.set_mesh(self.mesh):
            return jitted.lower(self.abstract_state.params, self.eval_batch).compile()
