"""Curation in processes of its own, on this machine's cores or a Dask cluster's, to be killed.

Shared by the tests of what a kill may change (nothing) and the benchmark of what it costs.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from t5x_style.artifacts import read_manifest

STAGES = ("raw", "clean", "dedup", "safe", "documents")
ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = """
import sys
from t5x_style.corpus.engine.dask_executor import DaskExecutor
from t5x_style.corpus.engine.executors import LocalExecutor
from tests.unit.curation import Curation, curate

if __name__ == "__main__":
    folder, archives, shard, partition, scheduler = sys.argv[1:]
    settings = Curation(documents_per_shard=int(shard), documents_per_partition=int(partition))
    executor = DaskExecutor(scheduler) if scheduler else LocalExecutor(2)
    curate(folder, archives, settings=settings, executor=executor)
"""


def start_curate(
    folder: Path,
    archives: Path,
    *,
    documents_per_shard: int = 40,
    documents_per_partition: int = 60,
    scheduler: str = "",
) -> subprocess.Popen:
    """Starts all stages on two processes, or on the workers of a scheduler file's cluster."""
    sizes = (documents_per_shard, documents_per_partition)
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *map(str, (folder, archives, *sizes, scheduler))],
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

    def kill_scheduler(self) -> None:
        """Kills the scheduler, without a word; its workers end of themselves."""
        os.kill(self.processes[0].pid, signal.SIGKILL)

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
