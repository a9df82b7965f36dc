"""The stages on real workers of a Dask cluster, some of which are killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from t5x_style.artifacts import read_manifest
from t5x_style.corpus.engine.dask_executor import DaskExecutor
from tests.unit.curation import Curation, curate
from tests.unit.web_archives import prose_pages, write_archive

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("raw", "clean", "dedup", "safe", "documents")
SETTINGS = Curation(documents_per_shard=16, documents_per_partition=40)


def start(folder, name, *arguments):
    with open(folder / f"{name}.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_" + name.partition("-")[0], *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


class Cluster:
    """A scheduler and two workers without nannies, each a process of its own."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder
        self.file = folder / "scheduler.json"
        arguments = ("--scheduler-file", str(self.file), "--host", "127.0.0.1")
        self.processes = [start(folder, "scheduler", *arguments, "--port", "0", "--no-dashboard")]
        self.workers = [self.add_worker(), self.add_worker()]

    def add_worker(self):
        name = f"worker-{len(self.processes)}"
        arguments = ("--scheduler-file", str(self.file), "--nthreads", "1", "--no-nanny")
        process = start(self.folder, name, *arguments, "--no-dashboard", "--death-timeout", "60")
        self.processes.append(process)
        return process

    def stop(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def wait_for_file(self):
        end = time.monotonic() + 60
        while not self.file.exists():
            assert time.monotonic() < end, (self.folder / "scheduler.log").read_text()
            time.sleep(0.05)


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path / "cluster")
    try:
        cluster.wait_for_file()
        yield cluster
    finally:
        cluster.stop()


def contents(folder):
    return [read_manifest(folder / stage)["content"] for stage in STAGES]


@pytest.mark.slow
def test_a_cluster_makes_the_bytes_of_one_machine_though_a_worker_dies_in_each_stage(
    cluster, tmp_path
):
    for number in range(3):
        pages = prose_pages(40, first_seed=30 * number)
        write_archive(tmp_path / "in" / f"{number}.warc.gz", pages, f"DUMP-{number}")
    archives = str(tmp_path / "in")
    curate(tmp_path / "here", archives, settings=SETTINGS)

    struck = []

    def strike():
        """Kills a worker, without a word, once a stage has begun to keep what its tasks made."""
        for stage in STAGES:
            work = tmp_path / "there" / f"{stage}.work"
            while not (work.is_dir() and any(work.iterdir())):
                if (tmp_path / "there" / "documents" / "manifest.json").exists():
                    return
                time.sleep(0.005)
            os.kill(cluster.workers[0].pid, signal.SIGKILL)
            struck.append(stage)
            cluster.workers = [cluster.workers[1], cluster.add_worker()]

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    executor = DaskExecutor(str(cluster.file))
    curate(tmp_path / "there", archives, settings=SETTINGS, executor=executor)
    thread.join(10)
    assert struck == list(STAGES)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
