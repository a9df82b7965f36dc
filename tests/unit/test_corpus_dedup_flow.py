"""Deduplication of shards against deduplication in memory, whatever the executor and the cut."""

import random

import pyarrow as pa
import pytest

from t5x_style.artifacts import Artifact, read_manifest
from t5x_style.corpus.documents import (
    TEXT_SCHEMA,
    Funnel,
    document_id,
    read_documents,
    write_shards,
)
from t5x_style.corpus.engine.executors import LocalExecutor
from t5x_style.corpus.engine.tasks import sources_of_shards
from t5x_style.corpus.engine.verbs import Job
from t5x_style.corpus.wanjuan_cc.dedup import DedupSettings, find_duplicates
from t5x_style.corpus.wanjuan_cc.dedup_flow import deduplicate
from tests.unit.test_corpus_dedup import planted


def documents(texts, seed=3):
    rng = random.Random(seed)
    rows = []
    for number, text in enumerate(texts):
        url = f"http://example.org/{number}"
        rows.append(
            dict.fromkeys(TEXT_SCHEMA.names)
            | {
                "id": document_id(url, text),
                "url": url,
                "text": text,
                "dump": rng.choice(["CC-MAIN-2019-04", "CC-MAIN-2023-50", "CC-MAIN-2021-31"]),
                "date": f"20{rng.randint(19, 23)}-0{rng.randint(1, 9)}-01T00:00:00Z",
                "links": [],
            }
        )
    return rows


@pytest.fixture(scope="module")
def rows():
    texts = planted(5, num_groups=60)
    return documents([*texts, *random.Random(0).sample(texts, 40), "", " ", "one two", "One, two!"])


def stage_folder(folder, rows, documents_per_shard):
    with Artifact(folder, stage="clean", settings={}).write() as writer:
        table = pa.Table.from_pylist(rows, TEXT_SCHEMA)
        write_shards(
            writer.folder, [table], schema=TEXT_SCHEMA, documents_per_shard=documents_per_shard
        )
    return folder


def run(folder, rows, settings, executor, *, documents_per_shard=37, documents_per_partition=50):
    clean = stage_folder(folder / "clean", rows, documents_per_shard)
    job = Job(executor, folder / "dedup.work", settings)
    found = deduplicate(
        job,
        sources_of_shards(clean, documents_per_shard),
        settings,
        documents_per_shard=1000,
        documents_per_partition=documents_per_partition,
    )
    artifact = Artifact(folder / "dedup", stage="dedup", settings={"dedup": settings})
    funnel = Funnel()
    for source in found.outputs:
        funnel.merge(Funnel.read(source.paths[0]))
    job.write_shards(artifact, found.outputs, funnel)
    left = [row for batch in read_documents(folder / "dedup") for row in batch.to_pylist()]
    return left, found, Funnel.read(folder / "dedup").steps["dedup"]


@pytest.mark.parametrize(
    "settings",
    [
        DedupSettings(),
        DedupSettings(scope="dump"),
        DedupSettings(verify="signature"),
        DedupSettings(verify="none", max_bucket_documents=2),
    ],
    ids=["jaccard", "by dump", "signature", "unverified"],
)
def test_shards_keep_what_memory_keeps(rows, settings, tmp_path):
    left, found, step = run(tmp_path, rows, settings, LocalExecutor(1))

    def texts(numbers):
        return [row["text"] for row in (rows if numbers is None else [rows[n] for n in numbers])]

    wanted = find_duplicates(
        [row["id"] for row in rows], [(row["dump"], row["date"]) for row in rows], texts, settings
    )
    stays = ~(wanted.exact | wanted.near)
    assert left == [row for row, is_kept in zip(rows, stays, strict=True) if is_kept]
    assert step.dropped == {
        "exact_duplicate": wanted.exact.sum(),
        "near_duplicate": wanted.near.sum(),
    }
    assert sum(found.cluster_sizes.values()) == wanted.num_clusters
    assert sum((size - 1) * num for size, num in found.cluster_sizes.items()) == wanted.near.sum()
    # Of what led to the shards nothing stays.
    assert {path.name[:6] for path in (tmp_path / "dedup.work").iterdir()} == {"dedup-"}


def test_cuts_and_workers_leave_no_trace(rows, tmp_path):
    contents = []
    for name, executor, per_partition in (
        ("a", LocalExecutor(1), 1000),
        ("b", LocalExecutor(1), 7),
        ("c", LocalExecutor(2), 50),
    ):
        with executor:
            run(
                tmp_path / name,
                rows,
                DedupSettings(),
                executor,
                documents_per_partition=per_partition,
            )
        contents.append(read_manifest(tmp_path / name / "dedup")["content"])
    assert len(set(contents)) == 1
