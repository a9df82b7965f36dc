"""Reading documents: every kind of file, splits, filters, and a reason for each record left out."""

import gzip
import json
from collections import Counter

import pyarrow as pa
import pytest

from t5x_style.corpus.documents import SCORED_SCHEMA, with_splits, write_shards
from t5x_style.data.text_tasks import SPLITS, TextTask, read_texts, task_files


def read(task, split="train", documents=None):
    dropped = Counter()
    texts = list(read_texts(task, split, task_files(task, documents)[split], dropped))
    return texts, dict(dropped)


def json_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def curated(folder, count=160):
    folder.mkdir()
    rows = [
        {
            "id": f"{i:032x}",
            "url": f"http://here/{'topics' if i % 4 == 0 else 'library'}/{i}",
            "title": "",
            "text": f"document {i}",
            "language": "en",
            "language_score": (i % 8) / 8,
            "date": "",
            "dump": "",
            "num_bytes": 10,
            "links": [],
        }
        for i in range(count)
    ]
    table = with_splits(pa.Table.from_pylist(rows, schema=SCORED_SCHEMA), 0.2)
    write_shards(folder, [table], documents_per_shard=16)
    return str(folder), table.to_pylist()


def test_curated_documents_keep_their_own_split(tmp_path):
    folder, rows = curated(tmp_path / "curated")
    for split in SPLITS:
        texts, dropped = read(TextTask("all"), split, folder)
        assert texts == [row["text"] for row in rows if row["split"] == split] != []
        assert dropped == {"other split": len(rows) - len(texts)}


def test_filters_keep_what_matches_and_count_what_does_not(tmp_path):
    folder, rows = curated(tmp_path / "curated")
    task = TextTask("good", matching={"url": r"/topics/\d"}, at_least={"language_score": 0.5})
    texts, dropped = read(task, "train", folder)
    topics = [row for row in rows if "/topics/" in row["url"]]
    good = [row for row in topics if row["language_score"] >= 0.5]
    expected = [row["text"] for row in good if row["split"] == "train"]
    assert texts == expected != []
    assert dropped == {
        "url does not match": len(rows) - len(topics),
        "language_score below 0.5": len(topics) - len(good),
        "other split": len(good) - len(expected),
    }


def test_json_lines_and_the_reasons_that_records_are_dropped(tmp_path):
    path = tmp_path / "own.jsonl"
    json_lines(path, [{"body": "one"}, {"body": ""}, {"body": 3}, {}, {"body": "\ud800"}, [1]])
    path.write_bytes(path.read_bytes() + b'{"body": "cut\n\n\xff\xfe\n' + b"[" * 100_000 + b"\n")
    task = TextTask("own", train_files=str(path), text_field="body", validation_share=0.0)
    texts, dropped = read(task)
    assert texts == ["one"]
    assert dropped == {
        "no text in 'body'": 3,
        "lone surrogate": 1,
        "not a JSON object": 1,
        "not JSON": 3,
    }


def test_plain_text_is_a_document_a_file_or_cut_at_a_separator(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\ntwo\n\nthree\n".encode())
    (tmp_path / "b.md").write_bytes(b"\xff no UTF-8")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"packed"))
    files = [str(tmp_path / "*.txt"), str(tmp_path / "*.md"), str(tmp_path / "*.gz")]
    whole = TextTask("own", train_files=files, validation_share=0.0)
    assert read(whole) == (["one\ntwo\n\nthree\n", "packed"], {"not UTF-8": 1})
    lines = TextTask("own", train_files=files[0], validation_share=0.0, separator="\n")
    assert read(lines) == (["one", "two", "three"], {})


def test_held_out_text_is_disjoint_and_does_not_depend_on_the_file(tmp_path):
    records = [{"text": f"text {i}"} for i in range(400)]
    one = json_lines(tmp_path / "one.jsonl", records)
    for name, part in [("a", records[:100]), ("b", records[100:])]:
        json_lines(tmp_path / f"{name}.jsonl", part)
    task = TextTask("own", train_files=one, validation_share=0.1)
    train, held_out = read(task, "train")[0], read(task, "validation")[0]
    assert sorted(train + held_out) == sorted(record["text"] for record in records)
    assert 20 <= len(held_out) <= 60
    parts = TextTask("own", train_files=str(tmp_path / "[ab].jsonl"), validation_share=0.1)
    assert read(parts, "validation")[0] == held_out


def test_validation_files_are_read_whole(tmp_path):
    train = json_lines(tmp_path / "train.jsonl", [{"text": "a", "split": "validation"}])
    held_out = json_lines(tmp_path / "val.jsonl", [{"text": f"v{i}"} for i in range(5)])
    task = TextTask("own", train_files=train, validation_files=held_out)
    assert read(task, "train")[0] == ["a"]
    assert read(task, "validation")[0] == [f"v{i}" for i in range(5)]


def test_files_come_in_a_fixed_order(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    task = TextTask("own", train_files=str(tmp_path / "**" / "*.txt"), validation_share=0.0)
    assert read(task)[0] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a/b"}, r"TextTask\.name = 'a/b'"),
        ({"validation_share": 1.0}, r"validation_share = 1\.0"),
        ({"validation_files": "x.txt"}, "no TextTask.train_files"),
        ({"matching": {"url": "("}}, r"TextTask\.matching\['url'\]"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TextTask(**{"name": "own", **settings})


def test_files_that_cannot_be_read_are_named(tmp_path):
    folder, _ = curated(tmp_path / "curated", 3)
    (tmp_path / "x.csv").write_text("a,b")
    for task, message in [
        (TextTask("own"), r"tasks\.documents"),
        (TextTask("own", train_files=str(tmp_path / "no*")), "matches no file"),
        (TextTask("own", train_files=str(tmp_path / "*.csv")), r"x\.csv is none of \.parquet"),
        (TextTask("own", train_files=f"{folder}/*.parquet", text_field="body"), "no column body"),
    ]:
        with pytest.raises(ValueError, match=message):
            task_files(task, None)
