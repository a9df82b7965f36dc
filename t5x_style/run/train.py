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

from t5x_style.config import cli, gin_files
from t5x_style.data.batches import Batches, Component, validation_batches
from t5x_style.data.prefetch import Prefetch, StatefulBatches
from t5x_style.objectives.lora import LoRA
from t5x_style.parallel.processes import Processes
from t5x_style.train import compile_cache, description, faults, loop, run_folder, writers
from t5x_style.train.batch import own_rows
from t5x_style.train.job import InitialRun, Job

# Fields of a model that say how it is computed, not what: they may change within a run.
_COMPUTED_ANYHOW = ("attention", "attention_block_tokens", "head_exchange", "remat")


def train(
    run_dir: str,
    job: Job,
    components: Sequence[Component],
    *,
    validation: Mapping[str, str] | None = None,
    initial_run: InitialRun | None = None,
    processes: Processes | None = None,
    writer_names: Sequence[str] = writers.NAMES,
    window_examples: int = 4096,
    dry_run: bool = False,
) -> None:
    """Trains a model until a step.

    Args:
      run_dir: folder of the run: checkpoints, metrics, and what it was made from.
      job: what is trained and how.
      components: the mixture of token stores.
      validation: name to token store, for evaluations.
      initial_run: the run to start from, unless `run_dir` has checkpoints of its own.
      processes: the processes to train together with; None: this one is alone.
      writer_names: where metrics go, of `train.writers.NAMES`.
      window_examples: examples that are packed together, see `data.batches.Batches`.
      dry_run: print what the run would be, and return.

    Raises:
      ValueError: the settings do not fit each other, or the folder holds another run.
    """
    compile_cache.enable()
    if processes is not None and not dry_run:
        processes.join()
    with faults.ending_the_job_on_error():
        if dry_run:
            print(description.dry_run_text(job), flush=True)
            return
        batches = Batches(
            components,
            job.length,
            job.batch_size,
            job.seed,
            rows=own_rows(job.train_batch),
            window_examples=window_examples,
        )
        evaluations = {
            name: functools.partial(
                validation_batches,
                store,
                job.length,
                job.eval_batch_size,
                rows=own_rows(job.eval_batch),
            )
            for name, store in (validation or {}).items()
        }
        fit_in_folder(
            run_dir,
            job,
            batches,
            evaluations,
            initial_run=initial_run,
            writer_names=writer_names,
        )


def fit_in_folder(
    run_dir: str,
    job: Job,
    batches: StatefulBatches,
    evaluations: loop.Evaluations,
    *,
    initial_run: InitialRun | None = None,
    writer_names: Sequence[str] = writers.NAMES,
) -> None:
    """Trains on a stream of batches in a run folder that says what it was made from.

    Args:
      run_dir: folder of the run.
      job: what is trained and how.
      batches: this process's rows of the training batches; the state names the stream that they
        are of under "stream".
      evaluations: passes over held-out batches.
      initial_run: the run to start from, unless `run_dir` has checkpoints of its own.
      writer_names: where metrics go, of `train.writers.NAMES`.

    Raises:
      ValueError: the folder holds another run.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_folder.locked(run_dir))
        about = {
            "identity": _identity(job, batches.state()["stream"], initial_run, run_dir),
            "settings": {
                "optimizer": dataclasses.asdict(job.optimizer),
                "schedule": dataclasses.asdict(job.schedule),  # type: ignore[reportArgumentType]
                "total_steps": job.total_steps,
            },
        }
        if run_folder.is_done(run_dir, **about):
            print(f"{run_dir} is finished at step {job.total_steps}", flush=True)
            return
        run_folder.describe(
            run_dir,
            model=job.objective.model,  # type: ignore[reportAttributeAccessIssue]
            model_info=description.parameter_table(job),
            config_text=gin_files.resolved_text(),
            **about,
        )
        source = stack.enter_context(contextlib.closing(Prefetch(batches)))
        loop.fit(
            job,
            source,
            evaluations,
            run_dir=run_dir,
            make_writers=functools.partial(
                writers.make_writers, writer_names, run_dir, job.total_steps
            ),
            initial_run=initial_run,
        )
        run_folder.mark_done(run_dir, step=job.total_steps, **about)


def _identity(
    job: Job, stream: Mapping[str, Any], initial_run: InitialRun | None, run_dir: str
) -> dict[str, Any]:
    """Returns what a run folder must have been begun with to be gone on with, as JSON values."""
    identity = {
        "objective": _objective(job.objective),
        "data": stream,
        "seed": job.seed,
        "initial_run": None if initial_run is None else initial_run.identity(),
    }
    before = run_folder.read_json(Path(run_dir) / run_folder.RUN)
    initial = identity["initial_run"]
    if before and initial and initial["key"] is None and before["identity"]["initial_run"]:
        # The earlier run is no longer there to be asked; nor is it needed any more.
        initial["key"] = before["identity"]["initial_run"]["key"]
    return identity


def _objective(objective: Any) -> dict[str, Any]:
    """Returns what an objective minimises, as JSON values."""
    values = dataclasses.asdict(objective)
    if isinstance(objective, LoRA):
        values["objective"] = _objective(objective.objective)
        return {"class": "LoRA", **values}
    values.pop("loss_chunk_tokens", None)
    model = values["model"] = objective.model.to_dict()
    for name in _COMPUTED_ANYHOW:
        del model[name]
    if model["moe"] is None:
        del model["moe"]
    else:
        del model["moe"]["dispatch"]
    return {"class": type(objective).__name__, **values}


if __name__ == "__main__":
    cli.main("t5x_style.run.train.train")
