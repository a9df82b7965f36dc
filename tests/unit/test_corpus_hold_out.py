"""Held-out documents stand in no training text, nor do copies of them from elsewhere."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest

from t5x_style.artifacts import Artifact, read_manifest
from t5x_style.corpus.documents import (
    DOCUMENT_SCHEMA,
    TEXT_SCHEMA,
    Funnel,
    document_id,
    read_documents,
    write_shards,
)
from t5x_style.corpus.engine.executors import LocalExecutor
from t5x_style.corpus.hold_out import HoldOutSettings, all_ngrams, ngrams, without_copies
from t5x_style.run.hold_out import HELD_OUT, OTHER_TEXTS, arm_tasks, hold_out
from tests.unit.web_archives import prose

N = 13
SETTINGS = HoldOutSettings(url_pattern="/held/", max_shared_ngrams=5, max_shared_part=0.5)


def text(seed, num_paragraphs=4):
    return "\n\n".join(prose(seed, num_paragraphs))


def words(text):
    return re.findall(r"\w+", text.lower())


def plain_ngrams(text):
    found = words(text)
    return {tuple(found[i : i + N]) for i in range(len(found) - N + 1)}


def passage(text, num_ngrams):
    """The beginning of a text with so many n-grams."""
    return " ".join(words(text)[: N - 1 + num_ngrams])


def table(documents):
    """Documents from addresses and texts."""
    urls, texts = zip(*documents, strict=True)
    return pa.table({"url": list(urls), "text": list(texts)})


def stage(folder, documents, schema=TEXT_SCHEMA):
    """A stage's folder of such documents, newest columns null."""
    empty = {field.name: None for field in schema}
    rows = [
        {**empty, "id": document_id(url, text), "url": url, "text": text} for url, text in documents
    ]
    artifact = Artifact(folder, stage="made", settings={"documents": documents})
    with artifact.write() as writer:
        write_shards(
            writer.folder,
            [pa.Table.from_pylist(rows, schema)],
            schema=schema,
            documents_per_shard=4,
        )
    return str(folder)


def urls_of(folder):
    return [url for batch in read_documents(folder) for url in batch["url"].to_pylist()]


def test_ngrams_are_those_of_plain_python():
    texts = [text(1), text(2), text(1).upper().replace(" ", ",\n"), "Three words only", "", "—"]
    found = [set(hashes.tolist()) for hashes in ngrams(texts, N)]
    assert [len(hashes) for hashes in found[:2]] == [len(plain_ngrams(t)) for t in texts[:2]]
    assert found[0] == found[2], "neither case nor punctuation nor line ends count"
    assert not found[0] & found[1]
    assert [len(hashes) for hashes in found[3:]] == [1, 0, 0]
    half = text(1)[: len(text(1)) // 2]
    shared = set(next(ngrams([half], N)).tolist()) & found[0]
    assert len(shared) == len(plain_ngrams(half) & plain_ngrams(text(1)))


def test_all_ngrams_do_not_depend_on_how_texts_are_cut():
    texts = [text(seed, 2) for seed in range(5)]
    expected = np.unique(np.concatenate(list(ngrams(texts, N))))
    np.testing.assert_array_equal(all_ngrams(iter(texts), N), expected)
    assert all_ngrams([], N).shape == (0,)


def test_documents_go_for_what_they_share_with_held_out_ones():
    held_out = all_ngrams([text(1), "A short page of ten words that somebody copied twice"], N)
    documents = [
        ("http://a/held/1", text(7)),
        ("http://b/other", text(2)),
        ("http://b/quotes", f"{passage(text(1), 5)} {text(3)}"),
        ("http://b/copies", f"{text(4)} {passage(text(1), 6)} {text(5)}"),
        ("http://b/short", "A SHORT page of ten words, that somebody copied: twice!"),
        ("http://b/empty", "..."),
        ("http://b/half", f"{passage(text(1), 3)} new words"),
        ("http://b/more", passage(text(1), 3)),
    ]
    kept, dropped = without_copies(table(documents), held_out, SETTINGS)
    assert kept["url"].to_pylist() == [f"http://b/{name}" for name in ("other", "quotes", "empty")]
    # "quotes" holds as many as are allowed, "copies" one more; "half" has 3 of 5, "more" all 3.
    assert dropped == {"held_out": 1, "shared_ngrams": 1, "shared_part": 3}


def test_a_quoted_passage_brings_no_ngram_across_its_ends():
    held_out = all_ngrams([text(1)], N)
    quoting = f"{text(3)} {passage(text(1), 5)} {text(4)}"
    found = next(ngrams([quoting], N))
    assert np.isin(found, held_out).sum() == 5


def test_a_host_is_held_out_as_a_whole():
    settings = HoldOutSettings(host_share=0.3)
    by_host = {
        f"h{number}.org": {
            settings.is_held_out(f"http://{prefix}h{number}.org{port}/{page}")
            for page in range(3)
            for prefix in ("", "me@")
            for port in ("", ":8080")
        }
        for number in range(300)
    }
    assert all(len(answers) == 1 for answers in by_host.values())
    share = np.mean([True in answers for answers in by_host.values()])
    assert 0.2 < share < 0.4
    assert HoldOutSettings(host_share=0.999).is_held_out("http://[not an address")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "nothing would be held out"),
        ({"url_pattern": "("}, "no regular expression"),
        ({"host_share": 1.0}, "below 1"),
        ({"host_share": 0.1, "ngram_words": 0}, "ngram_words = 0"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(ValueError, match=message):
        HoldOutSettings(**values)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Raw holds a near-copy of a held-out page on another host; High-Quality does not."""
    folder = tmp_path_factory.mktemp("stages")
    good = [(f"http://a.org/{'held' if n % 2 else 'x'}/{n}", text(n)) for n in range(8)]
    raw = [
        *good,
        ("http://mirror.org/1", text(1).replace("the", "that", 2) + " Menu. Log in."),
        ("http://b.org/prose", text(50)),
        ("http://b.org/quote", f"{passage(text(3), 4)} {text(51)}"),
    ]
    return {
        "raw": stage(folder / "raw", raw),
        "good": stage(folder / "good", good, DOCUMENT_SCHEMA),
    }


def held(stages, folder, **changes):
    settings = {
        "documents": stages,
        "held_out_of": "good",
        "output_dir": str(folder),
        "settings": SETTINGS,
        "executor": LocalExecutor(1),
        **changes,
    }
    hold_out(**settings)
    return folder


def test_no_stage_keeps_a_held_out_page_or_its_copy(stages, tmp_path, capsys):
    folder = held(stages, tmp_path / "out")
    assert urls_of(folder / HELD_OUT) == [f"http://a.org/held/{n}" for n in (1, 3, 5, 7)]
    good = [f"http://a.org/x/{n}" for n in (0, 2, 4, 6)]
    assert urls_of(folder / "good") == good
    assert urls_of(folder / "raw") == [*good, "http://b.org/prose", "http://b.org/quote"]
    step = Funnel.read(folder / "raw").steps["to_train_on"]
    assert (step.num_in, step.num_out) == (11, 6)
    assert step.dropped == {"held_out": 4, "shared_ngrams": 1}
    counts = read_manifest(folder / "raw")["counts"]
    total = len(set().union(*(plain_ngrams(text(n)) for n in (1, 3, 5, 7))))
    assert counts == {"documents": 6, "held_out_ngrams": total, "held_out_ngrams_left": 4}
    assert read_manifest(folder / "good")["counts"]["held_out_ngrams_left"] == 0
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    held(stages, folder)
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert before == after


def test_copies_of_a_users_own_texts_go_too(stages, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"text": text(50)}) + "\n" + json.dumps({"text": text(90)}) + "\n")
    folder = held(stages, tmp_path / "out", other_texts=str(own))
    assert "http://b.org/prose" not in urls_of(folder / "raw")
    assert "http://b.org/quote" in urls_of(folder / "raw")
    tasks = arm_tasks(str(folder), ["raw", "good"], str(own))
    assert [task.name for task in tasks] == ["raw", "good", OTHER_TEXTS]
    assert len(arm_tasks(str(folder), ["raw"])) == 1


def test_what_cannot_be_held_out_is_said(stages, tmp_path):
    with pytest.raises(ValueError, match=r"held_out_of = 'best' must be one of"):
        held(stages, tmp_path / "a", held_out_of="best")
    with pytest.raises(ValueError, match=r"no page of .*good is held out.*'nowhere'"):
        held(stages, tmp_path / "b", settings=HoldOutSettings(url_pattern="nowhere"))
    with pytest.raises(ValueError, match=r"no document of .* is left to train on"):
        held(stages, tmp_path / "c", settings=HoldOutSettings(url_pattern="http"))


def test_a_dry_run_writes_nothing(stages, tmp_path, capsys):
    held(stages, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    assert "raw, good after that" in capsys.readouterr().out
