"""The stages on real workers of a Dask cluster, some of which are killed."""

import pytest

from t5x_style.corpus.engine.dask_executor import DaskExecutor
from tests.faults.killed_curation import (
    STAGES,
    Cluster,
    StrikingExecutor,
    contents,
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


@pytest.mark.campaign
def test_a_cluster_makes_the_bytes_of_one_machine_though_a_worker_dies_in_each_stage(
    cluster, tmp_path
):
    for number in range(3):
        pages = prose_pages(40, first_seed=30 * number)
        write_archive(tmp_path / "in" / f"{number}.warc.gz", pages, f"DUMP-{number}")
    archives = str(tmp_path / "in")
    curate(tmp_path / "here", archives, settings=SETTINGS)

    executor = StrikingExecutor(DaskExecutor(str(cluster.file)), tmp_path / "marks", "worker")
    with cluster.replacing_workers():
        curate(tmp_path / "there", archives, settings=SETTINGS, executor=executor)
    assert executor.struck() == list(STAGES)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.campaign("struck")
@pytest.mark.parametrize("struck", ["scheduler", "driver"])
def test_what_dies_in_any_stage_the_next_start_ends_with_the_same_bytes(struck, tmp_path):
    for number in range(3):
        pages = prose_pages(40, first_seed=30 * number)
        write_archive(tmp_path / "in" / f"{number}.warc.gz", pages, f"DUMP-{number}")
    curate(tmp_path / "here", str(tmp_path / "in"), settings=SETTINGS)

    def start(cluster, stages):
        return start_curate(
            tmp_path / "there",
            tmp_path / "in",
            documents_per_shard=SETTINGS.documents_per_shard,
            documents_per_partition=SETTINGS.documents_per_partition,
            scheduler=str(cluster.file),
            marks=str(tmp_path / "marks"),
            victim="driver" if struck == "driver" else str(cluster.processes[0].pid),
            stages=stages,
        )

    # Each of the two in a stage that works source by source, and in one whose rows travel.
    stages = ("clean", "dedup") if struck == "scheduler" else ("raw", "dedup", "documents")
    clusters = [Cluster(tmp_path / "cluster")]
    driver = None
    try:
        for stage in [*stages, None]:
            clusters[-1].wait_for_file()
            driver = start(clusters[-1], stages)
            code = driver.wait(120)
            # The driver of a dead scheduler says so and ends.
            assert (code == 0) == (stage is None)
            assert stage is None or (tmp_path / "marks" / stage).exists()
            if struck == "scheduler" and stage:
                clusters.append(Cluster(tmp_path / f"cluster-{stage}"))
    finally:
        if driver:
            driver.kill()
        for cluster in clusters:
            cluster.stop()
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
