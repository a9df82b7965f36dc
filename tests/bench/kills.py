"""What a kill -9 of a worker or of the driver costs, in each stage of the curation of web pages.

    python -m tests.bench.kills [--pages 6000] [--moment 0.5] [--rounds 3] [--engines local,dask]

Made-up pages in eight archives go through all stages, in turns undisturbed and with a kill in the
middle of one: of a worker, or of the driver, which is then started once more. Told are the median
of the ratios of each turn, from the first start to the last end, the interpreter's included, and
whether all stages have the bytes of an undisturbed run. The middle is found in the undisturbed run
just before: `moment` of the time from the stage's first kept task to its commit. "local" has two
processes, "dask" two workers of a running cluster, of which the older is killed and another added.
Asserts nothing.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.killed_curation import (
    STAGES,
    Cluster,
    contents,
    has_begun,
    is_done,
    start_curate,
)
from tests.unit.web_archives import prose_pages, write_archive

_NUM_ARCHIVES = 8
_POLL_SECS = 0.005
# Kills something of a running driver and gives the driver that now runs, or None if nothing was.
Strike = Callable[[subprocess.Popen], subprocess.Popen | None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=6000)
    parser.add_argument("--moment", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", default="local,dask")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        per_archive = arguments.pages // _NUM_ARCHIVES
        for number in range(_NUM_ARCHIVES):
            # A sixth of the pages are in two archives.
            pages = prose_pages(per_archive, first_seed=number * per_archive * 5 // 6)
            write_archive(folder / "in" / f"{number}.warc.gz", pages, f"DUMP-{number}")
        for engine in arguments.engines.split(","):
            cluster = None
            if engine == "dask":
                cluster = Cluster(folder / "cluster")
            try:
                if cluster:
                    cluster.wait_for_file()
                _measure(engine, cluster, folder, arguments)
            finally:
                if cluster:
                    cluster.stop()


def _measure(
    engine: str, cluster: Cluster | None, folder: Path, arguments: argparse.Namespace
) -> None:
    def start() -> subprocess.Popen:
        return start_curate(
            folder / "out",
            folder / "in",
            documents_per_shard=256,
            documents_per_partition=1024,
            scheduler=str(cluster.file) if cluster else "",
        )

    def kill_worker(driver: subprocess.Popen) -> subprocess.Popen | None:
        if cluster:
            cluster.kill_worker()
        elif workers := _workers_of(driver.pid):
            os.kill(workers[0], signal.SIGKILL)
        else:
            return None
        return driver

    def kill_driver(driver: subprocess.Popen) -> subprocess.Popen:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        return start()

    def run(
        stage: str = "", after_secs: float = 0.0, strike: Strike | None = None
    ) -> tuple[float, bool, dict[str, float]]:
        """Returns seconds, whether it was struck, and the seconds of each stage."""
        shutil.rmtree(folder / "out", ignore_errors=True)
        begin = time.monotonic()
        driver = start()
        struck = strike is None
        began: dict[str, float] = {}
        took: dict[str, float] = {}
        while driver.poll() is None:
            now = time.monotonic()
            for name in STAGES:
                if name not in began and has_begun(folder / "out", name):
                    began[name] = now
                if name in began and name not in took and is_done(folder / "out", name):
                    took[name] = now - began[name]
            is_time = stage in began and stage not in took and now - began[stage] >= after_secs
            if strike and not struck and is_time:
                left = strike(driver)
                driver, struck = left or driver, bool(left)
            time.sleep(_POLL_SECS)
        if driver.returncode:
            raise SystemExit(f"{engine}, {stage}: the driver ended with {driver.returncode}")
        return time.monotonic() - begin, struck, took

    run()  # the first reads everything from disk
    wanted = contents(folder / "out")
    for label, strike in (("worker", kill_worker), ("driver", kill_driver)):
        for stage in STAGES:
            ratios, all_secs, num_struck, num_same = [], [], 0, 0
            for _ in range(arguments.rounds):
                whole_secs, _, stage_secs = run()
                after_secs = arguments.moment * stage_secs.get(stage, 0.0)
                secs, is_struck, _ = run(stage, after_secs, strike)
                ratios.append(secs / whole_secs)
                all_secs.append(whole_secs)
                num_struck += is_struck
                num_same += contents(folder / "out") == wanted
            print(
                f"{engine}, {arguments.pages} pages, {label} killed in {stage:10} "
                f"{statistics.median(ratios):5.2f}x of {statistics.median(all_secs):6.2f} s, "
                f"at most {max(ratios):5.2f}x; of {arguments.rounds}: {num_struck} struck, "
                f"{num_same} with the same bytes",
                flush=True,
            )


def _workers_of(driver: int) -> list[int]:
    """Returns the processes that multiprocessing started for a driver's tasks, oldest first."""
    children = Path(f"/proc/{driver}/task/{driver}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


if __name__ == "__main__":
    main()
