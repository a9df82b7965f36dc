"""The train verb: one run, or one phase of several, from a mixture of token stores to checkpoints.

Phases are runs that start from each other (`initial_run`) and count steps on. Called again, a
finished run returns at once and a broken-off one goes on where its newest good checkpoint stands.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from t5x_style.config import cli, gin_files
from t5x_style.data.batches import Batches, Component, validation_batches
from t5x_style.data.prefetch import Prefetch
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.parallel import rules
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.train import compile_cache, description, faults, loop, run_folder, writers
from t5x_style.train.optimizers import AdamW
from t5x_style.train.plan import InitialRun, LoopSettings, Plan
from t5x_style.train.schedules import WarmupCosine

# Fields of a model that say how it is computed, not what: they may change within a run.
_COMPUTED_ANYHOW = ("attention", "attention_block_tokens", "remat")


def train(
    run_dir: str,
    objective: CausalLM,
    components: Sequence[Component],
    total_steps: int,
    batch_size: int,
    length: int,
    *,
    schedule: WarmupCosine,
    optimizer: AdamW = AdamW(),  # noqa: B008
    validation: Mapping[str, str] | None = None,
    initial_run: InitialRun | None = None,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008
    axis_rules: Mapping[str, Sequence[str]] | None = None,
    settings: LoopSettings = LoopSettings(),  # noqa: B008
    writer_names: Sequence[str] = writers.NAMES,
    window_examples: int = 4096,
    seed: int = 0,
    dry_run: bool = False,
) -> None:
    """Trains a model until a step.

    Args:
      run_dir: folder of the run: checkpoints, metrics, and what it was made from.
      objective: the loss, with its model.
      components: the mixture of token stores.
      total_steps: step to end at, counted from the start of the first of the runs that this one
        continues.
      batch_size: rows of a global batch.
      length: tokens in a row.
      schedule: learning rate as a function of the step.
      optimizer: which direction a gradient means.
      validation: name to token store, for evaluations.
      initial_run: the run to start from, unless `run_dir` has checkpoints of its own.
      mesh: sizes of the mesh axes.
      axis_rules: logical axis to mesh axes, where it differs from `parallel.rules.DEFAULT_RULES`.
      settings: how the run is carried out.
      writer_names: where metrics go, of `train.writers.NAMES`.
      window_examples: examples that are packed together, see `data.batches.Batches`.
      seed: of the first params, the order of the data and the objective's random numbers.
      dry_run: print what the run would be, and return.

    Raises:
      ValueError: the settings do not fit each other, or the folder holds another run.
    """
    compile_cache.enable()
    table = {**rules.DEFAULT_RULES, **{k: tuple(v) for k, v in (axis_rules or {}).items()}}
    with faults.ending_the_job_on_error(), contextlib.ExitStack() as stack:
        stack.enter_context(rules.axis_rules(table))
        plan = Plan(
            objective=objective,
            optimizer=optimizer,
            schedule=schedule,
            mesh=mesh.build(),
            total_steps=total_steps,
            batch_size=batch_size,
            length=length,
            seed=seed,
            settings=settings,
        )
        if dry_run:
            print(description.dry_run_text(plan), flush=True)
            return
        hosts = {"host_index": jax.process_index(), "host_count": jax.process_count()}
        batches = Batches(
            components, length, batch_size, seed, window_examples=window_examples, **hosts
        )
        evaluations = {
            name: functools.partial(
                validation_batches, store, length, plan.eval_batch_size, **hosts
            )
            for name, store in (validation or {}).items()
        }
        stack.enter_context(run_folder.locked(run_dir))
        about = {
            "identity": _identity(plan, batches.state()["stream"], initial_run, run_dir),
            "settings": {
                "optimizer": dataclasses.asdict(optimizer),
                "schedule": dataclasses.asdict(schedule),
                "total_steps": total_steps,
            },
        }
        if run_folder.is_done(run_dir, **about):
            print(f"{run_dir} is finished at step {total_steps}", flush=True)
            return
        run_folder.describe(
            run_dir,
            model=objective.model,
            model_info=description.parameter_table(plan),
            config_text=gin_files.resolved_text(),
            **about,
        )
        source = stack.enter_context(contextlib.closing(Prefetch(batches)))
        loop.fit(
            plan,
            source,
            evaluations,
            run_dir=run_dir,
            make_writers=functools.partial(
                writers.make_writers, writer_names, run_dir, total_steps
            ),
            initial_run=initial_run,
        )
        run_folder.mark_done(run_dir, step=total_steps, **about)


def _identity(
    plan: Plan, stream: Mapping[str, Any], initial_run: InitialRun | None, run_dir: str
) -> dict[str, Any]:
    """Returns what a run folder must have been begun with to be gone on with, as JSON values."""
    objective = dataclasses.asdict(plan.objective)  # type: ignore[reportArgumentType]
    del objective["loss_chunk_tokens"]
    for name in _COMPUTED_ANYHOW:
        del objective["model"][name]
    identity = {
        "objective": {"class": type(plan.objective).__name__, **objective},
        "data": stream,
        "seed": plan.seed,
        "initial_run": None if initial_run is None else initial_run.identity(),
    }
    before = run_folder.read_json(Path(run_dir) / run_folder.RUN)
    initial = identity["initial_run"]
    if before and initial and initial["key"] is None and before["identity"]["initial_run"]:
        # The earlier run is no longer there to be asked; nor is it needed any more.
        initial["key"] = before["identity"]["initial_run"]["key"]
    return identity


if __name__ == "__main__":
    cli.main("t5x_style.run.train.train")
