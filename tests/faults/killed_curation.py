"""Curation in processes of its own, on this machine's cores or a Dask cluster's, to be killed.

Shared by the tests of what a kill may change (nothing) and the benchmark of what it costs. In tests
no clock says when to strike: a work item of the stage does, so that each strike lands.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from t5x_style.artifacts import read_manifest
from t5x_style.corpus.engine.executors import Executor

STAGES = ("raw", "clean", "dedup", "safe", "documents")
ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = """
import sys
from t5x_style.corpus.engine.dask_executor import DaskExecutor
from t5x_style.corpus.engine.executors import LocalExecutor
from tests.faults.killed_curation import StrikingExecutor
from tests.unit.curation import Curation, curate

if __name__ == "__main__":
    folder, archives, shard, partition, scheduler, marks, victim, *stages = sys.argv[1:]
    settings = Curation(documents_per_shard=int(shard), documents_per_partition=int(partition))
    executor = DaskExecutor(scheduler) if scheduler else LocalExecutor(2)
    if marks:
        executor = StrikingExecutor(executor, marks, victim, stages)
    curate(folder, archives, settings=settings, executor=executor)
"""


class StrikingExecutor:
    """An executor under which the last work item of each stage strikes, once: kill -9.

    Args:
      inner: runs the items.
      marks: a folder that remembers which stages have been struck.
      victim: "worker", the process that runs the item; "driver", the one that this is made in; or a
        process id.
      stages: those that are struck.
    """

    def __init__(
        self, inner: Executor, marks: os.PathLike | str, victim: str, stages: Sequence[str] = STAGES
    ):
        self._inner = inner
        self._marks = Path(marks)
        self._marks.mkdir(exist_ok=True)
        self._victim = str(os.getpid()) if victim == "driver" else victim
        self._stages = stages

    def __enter__(self) -> "StrikingExecutor":
        self._inner.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._inner.__exit__(*exception)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """Runs the items; the last one strikes first if its stage has not been struck."""
        stage = Path(getattr(items[-1], "parent", "")).name.removesuffix(".work") if items else ""
        # A single item runs in the driver, which a local executor makes its own worker.
        if stage not in self._stages or len(items) < 2 or (self._marks / stage).exists():
            return self._inner.map(function, items)
        striking = functools.partial(_strike_once, self._marks / stage, self._victim, function)
        return self._inner.map(striking, list(enumerate(items, start=1 - len(items))))

    def struck(self) -> list[str]:
        """Returns the stages that have been struck, in order."""
        return [stage for stage in STAGES if (self._marks / stage).exists()]


def _strike_once(
    mark: Path, victim: str, function: Callable[[Any], Any], numbered: tuple[int, Any]
) -> Any:
    number, item = numbered
    if number == 0 and not mark.exists():
        mark.touch()
        os.kill(os.getpid() if victim == "worker" else int(victim), signal.SIGKILL)
    return function(item)


def start_curate(
    folder: Path,
    archives: Path,
    *,
    documents_per_shard: int = 40,
    documents_per_partition: int = 60,
    scheduler: str = "",
    marks: str = "",
    victim: str = "",
    stages: Sequence[str] = STAGES,
) -> subprocess.Popen:
    """Starts all stages on two processes, or on the workers of a scheduler file's cluster.

    With `marks`, under a `StrikingExecutor`.
    """
    sizes = (documents_per_shard, documents_per_partition)
    arguments = (folder, archives, *sizes, scheduler, marks, victim, *stages)
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def has_begun(folder: Path, stage: str) -> bool:
    """Returns whether a stage keeps something that its tasks made, or has kept."""
    work = folder / f"{stage}.work"
    return work.is_dir() and any(work.iterdir())


def is_done(folder: Path, stage: str) -> bool:
    """Returns whether a stage is committed."""
    return (folder / stage).exists()


def contents(folder: Path) -> list[str]:
    """Returns the digest of each stage's output."""
    return [read_manifest(folder / stage)["content"] for stage in STAGES]


class Cluster:
    """A scheduler and two workers without nannies, each a process of its own."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder = folder
        self.file = folder / "scheduler.json"
        arguments = ("--scheduler-file", str(self.file), "--host", "127.0.0.1")
        self.processes = [self._start("scheduler", *arguments, "--port", "0", "--no-dashboard")]
        self.workers = [self.add_worker(), self.add_worker()]

    def add_worker(self) -> subprocess.Popen:
        """Starts one more."""
        name = f"worker-{len(self.processes)}"
        arguments = ("--scheduler-file", str(self.file), "--nthreads", "1", "--no-nanny")
        process = self._start(name, *arguments, "--no-dashboard", "--death-timeout", "60")
        self.processes.append(process)
        return process

    def kill_worker(self) -> None:
        """Kills the older worker, without a word, and starts another."""
        os.kill(self.workers[0].pid, signal.SIGKILL)
        self.workers = [self.workers[1], self.add_worker()]

    @contextlib.contextmanager
    def replacing_workers(self) -> Iterator[None]:
        """Starts another worker for each that dies, as a cluster's manager does."""
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(0.05):
                dead = [worker for worker in self.workers if worker.poll() is not None]
                self.workers = [worker for worker in self.workers if worker not in dead]
                self.workers += [self.add_worker() for _ in dead]

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def stop(self) -> None:
        """Ends all processes."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def wait_for_file(self) -> None:
        """Waits for the scheduler."""
        end = time.monotonic() + 60
        while not self.file.exists():
            assert time.monotonic() < end, (self.folder / "scheduler.log").read_text()
            time.sleep(0.05)

    def _start(self, name: str, *arguments: str) -> subprocess.Popen:
        program = "distributed.cli.dask_" + name.partition("-")[0]
        with open(self.folder / f"{name}.log", "w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", program, *arguments],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
