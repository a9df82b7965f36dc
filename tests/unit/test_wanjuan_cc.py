"""The five stages end to end: what comes out, what must not matter, what is said when wrong."""

import dataclasses
import gzip
import json
import shutil

import pytest

from t5x_style.artifacts import MANIFEST_NAME
from t5x_style.corpus.documents import DOCUMENT_SCHEMA, Funnel, read_documents
from t5x_style.corpus.engine.executors import LocalExecutor
from t5x_style.corpus.pages import PageSettings
from t5x_style.corpus.wanjuan_cc.clean import CleanSettings
from t5x_style.run.raw import find_warc_files
from tests.unit.curation import Curation, curate
from tests.unit.web_archives import html_page, prose, prose_pages, write_archive

SHORT = "This page has one sentence and is much too short to be kept."
SETTINGS = Curation(validation_share=0.3, documents_per_shard=16)


def edited(seed):
    """The prose of a seed with one sentence changed: similarity of about 0.9."""
    paragraphs = prose(seed)
    paragraphs[2] = paragraphs[2].rpartition(".")[0] + " in the end."
    return paragraphs


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Two archives: the newer one repeats some pages of the older, exactly and nearly."""
    folder = tmp_path_factory.mktemp("archives")
    old = [*prose_pages(30), ("http://example.org/short", html_page([SHORT]))]
    new = [
        *prose_pages(10, first_seed=100),
        ("http://mirror.org/0", html_page(prose(0))),
        ("http://mirror.org/1", html_page(edited(1))),
        ("http://example.org/german", html_page(["Das ist ein ganz gewöhnlicher Satz. " * 30])),
    ]
    write_archive(folder / "a-old.warc.gz", old, "DUMP-2020", "2020-01-01T00:00:00Z")
    write_archive(folder / "b-new.warc.gz", new, "DUMP-2023", "2023-01-01T00:00:00Z")
    (folder / "broken.warc.gz").write_bytes((folder / "a-old.warc.gz").read_bytes()[:-100])
    return folder


@pytest.fixture(scope="module")
def curated(archives, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curated")
    return curate(folder, str(archives / "[ab]-*.warc.gz"), settings=SETTINGS)


def rows_of(folder):
    return [row for batch in read_documents(folder) for row in batch.to_pylist()]


def content_of(folder):
    return json.loads((folder / MANIFEST_NAME).read_text())["content"]


def test_documents_are_clean_and_the_newest_copy_stays(curated):
    rows = rows_of(curated)
    urls = [row["url"] for row in rows]
    assert len(rows) == 40
    assert "http://example.org/0" not in urls
    assert "http://example.org/1" not in urls
    assert {"http://mirror.org/0", "http://mirror.org/1", "http://example.org/2"} <= set(urls)
    by_url = {row["url"]: row for row in rows}
    assert by_url["http://example.org/2"]["text"] == "\n\n".join(prose(2))
    assert by_url["http://example.org/2"]["dump"] == "DUMP-2020"
    assert by_url["http://mirror.org/0"]["date"] == "2023-01-01T00:00:00Z"
    assert next(iter(read_documents(curated))).schema.names == DOCUMENT_SCHEMA.names
    assert {row["split"] for row in rows} == {"train", "validation"}


def test_the_funnel_accounts_for_every_record(curated):
    steps = {step["name"]: step for step in Funnel.read(curated).to_json()["steps"]}
    assert list(steps) == [
        "records", "pages", "raw", "clean", "dedup", "safe", "high_quality"
    ]  # fmt: skip
    assert steps["records"]["in"] == 46
    assert steps["records"]["dropped"] == {"warcinfo": 2}
    assert steps["raw"]["dropped"] == {"language": 1}
    assert steps["clean"]["dropped"] == {"too_few_words": 1}
    assert steps["dedup"]["dropped"] == {"exact_duplicate": 1, "near_duplicate": 1}
    assert steps["dedup"]["out"] == 40
    assert steps["safe"] == {**steps["safe"], "in": 40, "out": 40, "dropped": {}}
    assert steps["safe"]["bytes_out"] == sum(row["num_bytes"] for row in rows_of(curated))
    for before, after in zip(list(steps.values())[:-1], list(steps.values())[1:], strict=True):
        assert before["out"] == after["in"]


@pytest.mark.parametrize(
    ("num_workers", "pages_per_table"),
    [
        (1, 64),
        pytest.param(3, 1, marks=pytest.mark.slow),
        pytest.param(2, 7, marks=pytest.mark.slow),
    ],
)
def test_bytes_do_not_depend_on_workers_or_batches(
    archives, curated, tmp_path, num_workers, pages_per_table
):
    settings = dataclasses.replace(
        SETTINGS,
        pages=PageSettings(pages_per_table=pages_per_table),
        documents_per_partition=5 * pages_per_table,
    )
    paths = [str(archives / "a-old.warc.gz"), str(archives / "b-new.warc.gz")]
    with LocalExecutor(num_workers) as executor:
        curate(tmp_path, paths, settings=settings, executor=executor)
    for stage in ("raw", "clean", "dedup", "safe", "documents"):
        assert content_of(tmp_path / stage) == content_of(curated.parent / stage)


@pytest.mark.slow
def test_archives_in_parts_hold_the_same_documents(archives, curated, tmp_path):
    settings = dataclasses.replace(SETTINGS, split_bytes=3000)
    folder = curate(tmp_path, str(archives / "[ab]-*.warc.gz"), settings=settings)
    assert len(list((tmp_path / "raw.work").iterdir())) > 4
    assert rows_of(folder) == rows_of(curated)
    assert Funnel.read(folder).to_json() == Funnel.read(curated).to_json()


def test_a_second_run_does_nothing_and_a_new_archive_leaves_the_others_alone(
    archives, curated, tmp_path, capsys
):
    inputs = tmp_path / "in"
    inputs.mkdir()
    shutil.copy(archives / "a-old.warc.gz", inputs)
    curate(tmp_path, str(inputs), settings=SETTINGS)
    (kept,) = (tmp_path / "raw.work").iterdir()
    time_of_first = kept.stat().st_mtime_ns
    capsys.readouterr()
    curate(tmp_path, str(inputs), settings=SETTINGS)
    assert capsys.readouterr().out.count("is there already") == 5
    shutil.copy(archives / "b-new.warc.gz", inputs)
    folder = curate(tmp_path, str(inputs), settings=SETTINGS)
    assert len(list((tmp_path / "raw.work").iterdir())) == 2
    assert kept.stat().st_mtime_ns == time_of_first
    assert content_of(folder) == content_of(curated)


def test_other_settings_make_other_documents(archives, curated, tmp_path):
    given = str(archives / "[ab]-*.warc.gz")
    curate(tmp_path, given, settings=SETTINGS)
    rules = CleanSettings(min_words=5, min_sentences=1)
    folder = curate(tmp_path, given, settings=dataclasses.replace(SETTINGS, clean=rules))
    assert len(rows_of(folder)) == 41
    curate(tmp_path, given, settings=SETTINGS)
    assert content_of(folder) == content_of(curated)


def test_a_damaged_archive_is_used_and_its_losses_are_counted(archives, tmp_path):
    folder = curate(tmp_path, str(archives / "broken.warc.gz"), settings=SETTINGS)
    step = Funnel.read(folder).steps["records"]
    assert step.dropped["truncated_member"] == 1
    assert step.num_out == 30
    assert len(rows_of(folder)) == 30


def test_the_crawl_is_taken_where_no_archives_are_given(archives, curated, tmp_path):
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    for name in ("a-old.warc.gz", "b-new.warc.gz"):
        shutil.copy(archives / name, crawl)
    folder = curate(tmp_path, None, str(crawl), settings=SETTINGS)
    assert content_of(folder) == content_of(curated)


@pytest.mark.parametrize("given", [None, [], "no/such/file.warc.gz", "no/such/*.gz"])
def test_a_wrong_path_is_refused_with_the_setting_to_change(tmp_path, given):
    with pytest.raises(ValueError, match=r"raw\.raw\.warc_files.*WARC_FILES"):
        curate(tmp_path, given)
    assert list(tmp_path.iterdir()) == []


def test_files_without_records_or_good_documents_are_refused(tmp_path):
    nothing = tmp_path / "nothing.warc.gz"
    nothing.write_bytes(gzip.compress(b"this is no web archive"))
    with pytest.raises(ValueError, match=r"not_a_record.*WARC_FILES"):
        curate(tmp_path, str(nothing))
    poor = write_archive(tmp_path / "poor.warc.gz", [("http://a/", html_page([SHORT]))])
    with pytest.raises(ValueError, match=r"CleanSettings(.|\n)*too_few_words 1"):
        curate(tmp_path, str(poor))
    assert not (tmp_path / "clean").exists()


def test_paths_patterns_and_folders_name_files_once_and_in_order(archives, tmp_path):
    odd = tmp_path / "odd[1].warc.gz"
    shutil.copy(archives / "a-old.warc.gz", odd)
    assert find_warc_files(str(odd)) == [odd]
    names = [path.name for path in find_warc_files(str(archives))]
    assert names == ["a-old.warc.gz", "b-new.warc.gz", "broken.warc.gz"]
    (tmp_path / "c.warc.zst").write_bytes(b"")
    assert [path.name for path in find_warc_files(str(tmp_path))] == ["c.warc.zst", odd.name]
    given = [str(archives / "b-new.warc.gz"), str(archives / "*.gz")]
    assert [path.name for path in find_warc_files(given)] == [names[1], names[0], names[2]]


def test_a_dry_run_leaves_nothing_behind(archives, tmp_path, capsys):
    curate(tmp_path, str(archives), dry_run=True)
    said = capsys.readouterr().out
    assert "raw: 3 web archives" in said
    assert f"clean: takes {tmp_path / 'raw'}, once" in said
    curate(tmp_path, None, str(tmp_path / "crawl"), dry_run=True)
    assert "once crawl has made them" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
