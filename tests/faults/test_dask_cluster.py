"""The stages on real workers of a Dask cluster, some of which are killed."""

import os
import signal
import threading
import time

import pytest

from t5x_style.corpus.engine.dask_executor import DaskExecutor
from tests.faults.killed_curation import (
    STAGES,
    Cluster,
    contents,
    has_begun,
    is_done,
    start_curate,
)
from tests.unit.curation import Curation, curate
from tests.unit.web_archives import prose_pages, write_archive

SETTINGS = Curation(documents_per_shard=16, documents_per_partition=40)


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path / "cluster")
    try:
        cluster.wait_for_file()
        yield cluster
    finally:
        cluster.stop()


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
            while not has_begun(tmp_path / "there", stage):
                if is_done(tmp_path / "there", "documents"):
                    return
                time.sleep(0.005)
            cluster.kill_worker()
            struck.append(stage)

    thread = threading.Thread(target=strike, daemon=True)
    thread.start()
    executor = DaskExecutor(str(cluster.file))
    curate(tmp_path / "there", archives, settings=SETTINGS, executor=executor)
    thread.join(10)
    assert struck == list(STAGES)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.parametrize("struck", ["scheduler", "driver"])
def test_what_dies_in_any_stage_the_next_start_ends_with_the_same_bytes(struck, tmp_path):
    for number in range(3):
        pages = prose_pages(40, first_seed=30 * number)
        write_archive(tmp_path / "in" / f"{number}.warc.gz", pages, f"DUMP-{number}")
    curate(tmp_path / "here", str(tmp_path / "in"), settings=SETTINGS)

    def start(cluster):
        return start_curate(
            tmp_path / "there",
            tmp_path / "in",
            documents_per_shard=SETTINGS.documents_per_shard,
            documents_per_partition=SETTINGS.documents_per_partition,
            scheduler=str(cluster.file),
        )

    clusters = [Cluster(tmp_path / "cluster")]
    num_struck = 0
    try:
        clusters[-1].wait_for_file()
        driver = start(clusters[-1])
        for stage in STAGES:
            while driver.poll() is None and not has_begun(tmp_path / "there", stage):
                time.sleep(0.005)
            if driver.poll() is not None:
                break  # it was faster than the look at it
            if struck == "driver":
                os.kill(driver.pid, signal.SIGKILL)
                assert driver.wait(60) == -signal.SIGKILL
            else:
                clusters[-1].kill_scheduler()
                # The driver says so and ends, within the time that it waits for a connection.
                assert driver.wait(120) != 0
                clusters.append(Cluster(tmp_path / f"cluster-{stage}"))
                clusters[-1].wait_for_file()
            num_struck += 1
            driver = start(clusters[-1])
        assert driver.wait(120) == 0
    finally:
        driver.kill()
        for cluster in clusters:
            cluster.stop()
    assert num_struck >= 3
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
