"""Curation of hostile pages, and curation killed at any moment."""

import json
import signal
from collections import Counter

import pytest

from t5x_style.artifacts import MANIFEST_NAME
from t5x_style.corpus.documents import Funnel, read_documents
from t5x_style.corpus.engine.executors import LocalExecutor
from t5x_style.corpus.guard import GuardLimits
from t5x_style.corpus.wanjuan_cc.raw import RawSettings
from tests.faults.killed_curation import STAGES, StrikingExecutor, contents, start_curate
from tests.unit.curation import Curation, curate
from tests.unit.web_archives import prose, prose_pages, write_archive

TEXT = "".join(f"<p>{paragraph}</p>" for paragraph in prose(1000)).encode()

NUMBERS = [str(number * 7919 % 100_003) for number in range(300_000)]

# Pages that cost parsers much; those with a reason are dropped, the others give their text.
HOSTILE = {
    "attributes": (b"<p " + b" ".join(b"a%d=1" % i for i in range(100_000)) + b">" + TEXT, None),
    "depth": (b"<div>" * 100_000 + TEXT, "too_deep"),
    "tags": (b"<br>" * 400_000 + TEXT, "too_many_tags"),
    "long line": (b"<p>" + " ".join(NUMBERS).encode(), "text_too_long"),
    "broken utf-8": (b"\xff\xfe\xfd" * 100_000, "language"),
    "no end": (b"<script>" + b"x" * 1_000_000, "empty"),
}


def test_hostile_pages_cost_bounded_time_and_the_rest_is_intact(tmp_path):
    good = prose_pages(40)
    hostile = [(f"http://hostile.org/{name}", body) for name, (body, _) in HOSTILE.items()]
    archive = write_archive(tmp_path / "x.warc.gz", [*good[:20], *hostile, *good[20:]])
    folder = curate(tmp_path, str(archive))
    urls = urls_of(folder)
    assert [url for url in urls if "example" in url] == [url for url, _ in good]
    assert [url for url in urls if "hostile" in url] == ["http://hostile.org/attributes"]
    reasons = Counter(reason for _, reason in HOSTILE.values() if reason)
    assert Funnel.read(folder).steps["raw"].dropped == reasons


def test_a_page_that_an_extractor_does_not_get_through_is_given_up(tmp_path):
    good = prose_pages(12)
    # Within all caps on the source, and yet it keeps trafilatura busy for minutes.
    lists = ("http://hostile.org/lists", b"<ul><li>word word</ul>" * 80_000)
    archive = write_archive(tmp_path / "x.warc.gz", [*good[:5], lists, *good[5:]])
    settings = Curation(
        raw=RawSettings(extractor="trafilatura"),
        limits=GuardLimits(cpu_secs=2, wall_secs=60, memory_bytes=1 << 30),
    )
    folder = curate(tmp_path, str(archive), settings=settings)
    assert urls_of(folder) == [url for url, _ in good]
    assert Funnel.read(folder).steps["raw"].dropped == {"timeout": 1}


def urls_of(folder):
    return [url for batch in read_documents(folder, ["url"]) for url in batch["url"].to_pylist()]


@pytest.mark.campaign
def test_curation_killed_in_each_stage_ends_with_the_same_bytes(tmp_path):
    archives = tmp_path / "in"
    for number in range(4):
        pages = prose_pages(60, first_seed=50 * number)  # ten pages in two archives each
        write_archive(archives / f"{number}.warc.gz", pages, f"DUMP-{number}")
    settings = Curation(documents_per_shard=40, documents_per_partition=60)
    curate(tmp_path / "expected", str(archives), settings=settings)
    expected = json.loads((tmp_path / "expected" / "documents" / MANIFEST_NAME).read_text())
    assert expected["counts"]["documents"] == 210
    folder = tmp_path / "killed"
    marks = tmp_path / "marks"
    for _ in STAGES:
        process = start_curate(folder, archives, marks=str(marks), victim="driver")
        assert process.wait() == -signal.SIGKILL
    assert {path.name for path in marks.iterdir()} == set(STAGES)
    assert start_curate(folder, archives).wait() == 0
    found = json.loads((folder / "documents" / MANIFEST_NAME).read_text())
    assert found["content"] == expected["content"]
    assert found["outputs"] == expected["outputs"]
    for stage in STAGES:
        assert not list((folder / f"{stage}.work").glob(".*partial*"))


@pytest.mark.campaign
def test_a_worker_killed_in_each_stage_changes_nothing(tmp_path):
    for number in range(3):
        pages = prose_pages(40, first_seed=30 * number)
        write_archive(tmp_path / "in" / f"{number}.warc.gz", pages, f"DUMP-{number}")
    archives = str(tmp_path / "in")
    settings = Curation(documents_per_shard=16, documents_per_partition=40)
    curate(tmp_path / "expected", archives, settings=settings)
    with StrikingExecutor(LocalExecutor(2), tmp_path / "marks", "worker") as executor:
        curate(tmp_path / "killed", archives, settings=settings, executor=executor)
    assert executor.struck() == list(STAGES)
    assert contents(tmp_path / "killed") == contents(tmp_path / "expected")
