"""One training job as plain values: what is trained, where it starts, how it is carried out.

From these come the shapes of the state and of the batches, and the compiled steps; running them is
`train.loop`'s affair, and `run.plan` compiles them for devices that are not here.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from t5x_style.parallel import rules
from t5x_style.parallel.mesh import MeshConfig
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
      peak_flops_per_sec: of one device, for MFU; None: from `parallel.topology.CHIPS`.
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
                    f"job.LoopSettings.{name} = {getattr(self, name)}: must be at least 1"
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
            raise ValueError(f'job.InitialRun.mode = {self.mode!r}: must be "continue" or "params"')

    def identity(self) -> dict[str, Any]:
        """Returns, as JSON values, which run this is; its key is None while it is not finished."""
        done = run_folder.read_json(Path(self.run_dir) / run_folder.DONE)
        return {"mode": self.mode, "step": self.step, "key": done and done["key"]}

    def load(self, abstract: TrainState, transformation: Any) -> TrainState:
        """Returns the state to start from.

        Raises:
          ValueError: there is no such checkpoint, it is damaged, or it is of another model.
        """
        if self.mode == "params":
            return states.with_params(self.load_params(abstract.params), transformation, abstract)
        return self._read(checkpoint.restore, abstract).tree

    def load_params(self, abstract: Any) -> Any:
        """Returns the params alone, laid as `abstract` says.

        Raises:
          ValueError: as `load`.
        """
        return self._read(checkpoint.restore_params, abstract)

    def _read(self, restore: Callable[[Path, Any], Any], abstract: Any) -> Any:
        folder = Path(self.run_dir) / run_folder.CHECKPOINTS
        path = folder / str(checkpoint.chosen_step(folder, self.step))
        try:
            return restore(path, abstract)
        except checkpoint.DamagedCheckpointError as error:
            raise ValueError(f"{error}; set job.InitialRun.step to an older step") from error


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained, on what devices and for how long: all that the compiled steps depend on.

    Attributes:
      objective: the loss and its model.
      schedule: learning rate as a function of the step.
      total_steps: step to end at, counted from the start of the first of the runs that this one
        continues.
      batch_size: rows of a global batch.
      length: tokens in a row.
      optimizer: which direction a gradient means.
      mesh: sizes of the mesh axes.
      axis_rules: logical axis to mesh axes, where it differs from `parallel.rules.DEFAULT_RULES`.
      gradient_rules: the same for gradients, where they are not to lie as the parameters do.
      optimizer_rules: the same for the optimiser's moments. Parameters, gradients and moments are
        each replicated, cut by some axes or by all, independently (arXiv 2401.09149, section 3).
      settings: how the job is carried out.
      seed: of the first params, the order of the data and the objective's random numbers.
      devices: `jax.Device`s to lay the mesh over; None for all there are.
    """

    objective: Objective
    schedule: Schedule
    total_steps: int
    batch_size: int
    length: int
    optimizer: AdamW = AdamW()  # noqa: RUF009
    mesh: MeshConfig = MeshConfig()  # noqa: RUF009
    axis_rules: Mapping[str, Sequence[str]] | None = None
    gradient_rules: Mapping[str, Sequence[str]] | None = None
    optimizer_rules: Mapping[str, Sequence[str]] | None = None
    settings: LoopSettings = LoopSettings()
    seed: int = 0
    devices: Sequence[Any] | None = None

    @functools.cached_property
    def device_mesh(self) -> Mesh:
        """The devices in their places."""
        return self.mesh.build(self.devices)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Makes the mesh and the rules those in use."""
        with rules.axis_rules(self.table()), jax.set_mesh(self.device_mesh):
            yield

    @property
    def eval_batch_size(self) -> int:
        """Rows of a global evaluation batch: one microbatch."""
        return self.batch_size // self.settings.num_microbatches

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        return states.abstract_state(
            self.objective,
            self.optimizer.transformation(),
            self.device_mesh,
            self.table(),
            self.table(self.optimizer_rules),
        )

    @functools.cached_property
    def train_batch(self) -> AbstractBatch:
        """Shapes, dtypes and shardings of a global training batch."""
        return self._batch(self.batch_size, self.settings.num_microbatches)

    @functools.cached_property
    def eval_batch(self) -> AbstractBatch:
        """Shapes, dtypes and shardings of a global evaluation batch."""
        return self._batch(self.eval_batch_size)

    def compile_train_step(self) -> jax.stages.Compiled:
        """Returns the compiled train step, its state donated."""
        step = make_train_step(
            self.objective,
            self.optimizer.transformation(),
            self.schedule,
            clip_norm=self.optimizer.clip_norm,
            num_microbatches=self.settings.num_microbatches,
            seed=self.seed,
            gradient_shardings=states.param_shardings(
                self.objective, self.device_mesh, self.table(self.gradient_rules)
            ),
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
        with self.in_place():
            return jitted.lower(self.abstract_state, self.train_batch).compile()

    def compile_eval_step(self) -> jax.stages.Compiled:
        """Returns the compiled evaluation step."""
        jitted = jax.jit(make_eval_step(self.objective))
        with self.in_place():
            return jitted.lower(self.abstract_state.params, self.eval_batch).compile()

    def table(self, own: Mapping[str, Sequence[str]] | None = None) -> rules.Rules:
        """Returns the whole table of rules: the defaults, the job's, and those given over them.

        Raises:
          ValueError: a rule is for no logical axis, or names no axis of the mesh.
        """
        changed = {**(self.axis_rules or {}), **(own or {})}
        unknown = sorted(set(changed) - set(rules.DEFAULT_RULES))
        if unknown:
            raise ValueError(
                f"job.Job.axis_rules, gradient_rules and optimizer_rules, or layouts.Layouts: "
                f"{unknown} are no logical axes; known: {sorted(rules.DEFAULT_RULES)}"
            )
        renamed = {name: tuple(axes) for name, axes in changed.items()}
        table = {**rules.DEFAULT_RULES, **renamed}
        rules.check(table, self.device_mesh)
        return table

    def _batch(self, num_rows: int, num_microbatches: int = 1) -> AbstractBatch:
        shapes = self.objective.batch_shapes(num_rows, self.length)
        with rules.axis_rules(self.table()):
            return abstract_batch(shapes, self.device_mesh, num_microbatches)
