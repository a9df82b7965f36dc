"""The training loop: compile while the data warms up, start or resume, step, measure, save.

Which model, data and optimiser, in which folder, is `run/train.py`'s affair.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import numpy as np

from t5x_style.parallel.topology import chip_of
from t5x_style.train import checkpoint, faults, run_folder
from t5x_style.train import state as states
from t5x_style.train.batch import BatchSource, place_batch
from t5x_style.train.compile_cache import compile_secs
from t5x_style.train.job import InitialRun, Job
from t5x_style.train.metrics import MetricLog, PairSums
from t5x_style.train.profiling import ProfileWindow
from t5x_style.train.state import TrainState
from t5x_style.train.writers import Writer

# Name to a function that gives this process's rows of each batch of one pass over held-out data.
Evaluations = Mapping[str, Callable[[], Iterable[Mapping[str, np.ndarray]]]]
# From the step that the process begins at to the writers of its metrics.
MakeWriters = Callable[[int], Sequence[Writer]]


def fit(
    job: Job,
    source: BatchSource,
    evaluations: Evaluations,
    *,
    run_dir: str | Path,
    make_writers: MakeWriters,
    initial_run: InitialRun | None = None,
) -> TrainState:
    """Trains until `job.total_steps`, from the newest checkpoint of the run folder if it has one.

    Args:
      job: what to train and how.
      source: this process's rows of the training batches.
      evaluations: passes over held-out batches of `job.eval_batch_size` rows.
      run_dir: the run folder, which this process has locked.
      make_writers: makes the writers of metrics.
      initial_run: where to start if the run folder has no checkpoint.

    Returns:
      The state after the last step, which is saved too.

    Raises:
      faults.Stopped: the process was asked to stop; the state is saved.
      ValueError: a checkpoint does not fit, the data do not, or too many gradients in a row were
        not finite.
    """
    settings, compiled_before_secs = job.settings, compile_secs()
    with contextlib.ExitStack() as stack:
        compiler = stack.enter_context(_one_thread())
        train_future = _submit(compiler, job.compile_train_step)
        eval_future = _submit(compiler, job.compile_eval_step) if evaluations else None
        stack.enter_context(job.in_place())
        checkpoints = Path(run_dir) / run_folder.CHECKPOINTS
        saver = checkpoint.Checkpointer(checkpoints, keep=settings.keep_checkpoints)
        stack.enter_context(contextlib.closing(saver))
        saver.remove_unfinished()
        saver_ready = _submit(compiler, lambda: saver.prepare(job.abstract_state))
        state, extra = _first_state(job, saver, initial_run)
        step = int(state.step)
        _check_step(job, step, run_dir)
        writers = make_writers(step)
        for writer in writers:
            stack.callback(writer.close)
        log = _metric_log(job, writers)
        if extra:
            source.restore(extra["data"])
            log.restore(extra["log"])

        train_step = train_future.result()
        log.restart_clock()
        log.write(step, {"timing/compile_secs": compile_secs() - compiled_before_secs})
        signals = stack.enter_context(faults.StopSignals())
        watchdog = stack.enter_context(faults.Watchdog(settings.step_timeout_secs))
        profile = stack.enter_context(_profile_window(job, run_dir))
        injector = faults.FaultInjector()
        # Innermost: what is closed on the way out would wait for a process that is gone.
        stack.enter_context(faults.ending_the_job_on_error())
        while step < job.total_steps:
            injector.at("step", step + 1)
            profile.before(step + 1)
            start_secs = perf_counter()
            rows = next(source)
            wait_secs = perf_counter() - start_secs
            batch = injector.batch(step + 1, place_batch(rows, job.train_batch))
            state, pairs = train_step(state, batch)
            step += 1
            # Reads the numbers of the step before, while the devices work on this one.
            log.record(step, pairs, wait_secs=wait_secs)
            watchdog.beat()
            is_last, is_stopping = step == job.total_steps, signals.requested(step)
            if is_last:
                log.finish(step)
            if eval_future and (is_last or _is_due(step, settings.eval_every_steps)):
                log.flush()
                values = _evaluate(job, eval_future.result(), state, evaluations, watchdog.beat)
                log.write(step, values)
                log.restart_clock()
            if is_last or is_stopping or _is_due(step, settings.checkpoint_every_steps):
                log.flush()
                saver_ready.result()
                saver.save(step, state, {"data": source.state(), "log": log.state()})
                injector.at("save", step)
                watchdog.beat()
            if is_stopping:
                saver.close()
                print(f"saved step {step}: the same command goes on from there", flush=True)
                raise faults.Stopped(step)
        saver.close()
        return state


def _first_state(
    job: Job, saver: checkpoint.Checkpointer, initial_run: InitialRun | None
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state to begin with, and what was saved beside it if that was this run's own.

    In this order: the newest good checkpoint of the run's own folder, that of `initial_run`, fresh
    values from the seed.
    """
    restored = saver.restore_newest(job.abstract_state)
    if restored is not None:
        return restored.tree, restored.extra
    transformation = states.on_trained(job.objective, job.optimizer.transformation())
    if initial_run is not None:
        return initial_run.load(job.abstract_state, transformation), {}
    abstract = job.abstract_state
    return states.initialise(job.objective, transformation, abstract, job.seed), {}


def _check_step(job: Job, step: int, run_dir: str | Path) -> None:
    if step > job.total_steps:
        raise ValueError(
            f"the state to go on from, in {run_dir} or its initial run, is at step {step}, beyond "
            f"job.Job.total_steps = {job.total_steps}, which counts from the start of the "
            "first run: raise it"
        )


def _metric_log(job: Job, writers: Sequence[Writer]) -> MetricLog:
    devices = job.device_mesh.devices.flat
    chip = chip_of(devices[0].device_kind)
    peak_of_one = job.settings.peak_flops_per_sec or (chip and chip.peak_flops_per_sec)
    return MetricLog(
        writers,
        every_steps=job.settings.log_every_steps,
        flops_per_token=lambda keys: job.objective.flops_per_token(job.length, keys),
        peak_flops_per_sec=None if peak_of_one is None else peak_of_one * len(devices),
        on_step=faults.SkipGuard(job.settings.max_skipped_steps).check,
    )


def _profile_window(job: Job, run_dir: str | Path) -> ProfileWindow:
    settings = job.settings
    folder = Path(run_dir) / run_folder.TENSORBOARD
    return ProfileWindow(folder, settings.profile_start_step, settings.profile_num_steps)


def _evaluate(
    job: Job,
    eval_step: Callable[..., Any],
    state: TrainState,
    evaluations: Evaluations,
    on_batch: Callable[[], None],
) -> dict[str, float]:
    """Returns the mean of each metric over each pass, named eval/PASS/METRIC."""
    values = {}
    for name, batches in evaluations.items():
        sums, before = PairSums(), {}
        for rows in batches():
            pairs = eval_step(state.params, place_batch(rows, job.eval_batch))
            sums.add(jax.device_get(before))
            before = pairs
            on_batch()
        sums.add(jax.device_get(before))
        values |= {f"eval/{name}/{metric}": mean for metric, mean in sums.means().items()}
    return values


def _is_due(step: int, every_steps: int | None) -> bool:
    return every_steps is not None and step % every_steps == 0


@contextlib.contextmanager
def _one_thread() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _submit(pool: ThreadPoolExecutor, function: Callable[[], Any]) -> Future[Any]:
    """Runs a function in the pool, under the axis rules in force here."""
    return pool.submit(contextvars.copy_context().run, function)
