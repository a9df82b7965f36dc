"""The document schema, its shards, and the funnel."""

import hashlib

import pyarrow as pa
import pytest

from t5x_style.config.paths import find_data
from t5x_style.corpus.documents import (
    DOCUMENT_SCHEMA,
    SAFE_SCHEMA,
    SCORED_SCHEMA,
    TEXT_SCHEMA,
    Funnel,
    document_id,
    read_documents,
    split_of,
    with_splits,
    write_shards,
)
from t5x_style.data.release import RELEASE_SCHEMA


def table_of(texts, first=0):
    rows = [
        {
            "id": document_id(f"http://example.org/{first + i}", text),
            "url": f"http://example.org/{first + i}",
            "title": f"Title {first + i}",
            "text": text,
            "language": "en",
            "language_score": 0.75,
            "date": "2024-05-01T00:00:00Z",
            "dump": "TEST-1",
            "num_bytes": len(text.encode()),
            "links": [{"url": "http://example.org/", "anchor": "home", "start": 0, "end": 4}],
        }
        for i, text in enumerate(texts)
    ]
    return pa.Table.from_pylist(rows, SCORED_SCHEMA)


def digests(paths):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_the_schema_is_the_one_the_data_room_was_promised():
    assert DOCUMENT_SCHEMA.names == [
        "id", "url", "title", "text", "language", "language_score", "date", "dump", "num_bytes",
        "links", "toxic_score", "porn_score", "fluency_score", "not_ad_score", "split",
    ]  # fmt: skip
    types = {field.name: field.type for field in DOCUMENT_SCHEMA}
    assert types["language_score"] == pa.float32()
    assert types["num_bytes"] == pa.int64()
    assert [field.name for field in types["links"].value_type] == ["url", "anchor", "start", "end"]


def test_documents_come_back_as_written(tmp_path):
    table = with_splits(table_of([f"text {i} é" for i in range(700)]), 0.05)
    paths = write_shards(tmp_path, [table], documents_per_shard=512)
    assert [path.name for path in paths] == ["part-00000.parquet", "part-00001.parquet"]
    again = pa.Table.from_batches(list(read_documents(tmp_path)))
    assert again.to_pylist() == table.to_pylist()
    texts = [text for batch in read_documents(tmp_path, ["text"]) for text in batch["text"]]
    assert len(texts) == 700


def test_shard_bytes_do_not_depend_on_how_rows_were_cut_into_tables(tmp_path):
    whole = with_splits(table_of([f"text {i}" for i in range(600)]), 0.05)
    expected = None
    for cut in (600, 1, 7, 256):
        folder = tmp_path / str(cut)
        folder.mkdir()
        tables = [whole.slice(start, cut) for start in range(0, 600, cut)]
        found = digests(write_shards(folder, tables, documents_per_shard=300))
        expected = expected or found
        assert found == expected


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match="finished stage"):
        list(read_documents(tmp_path))


def test_ids_depend_on_address_and_text_and_not_on_where_one_ends():
    assert document_id("http://a/", "b") == document_id("http://a/", "b")
    assert len({document_id(u, t) for u, t in [("ab", "c"), ("a", "bc"), ("abc", "")]}) == 3


def test_the_validation_split_has_about_its_share():
    splits = [split_of(document_id("u", str(i)), 0.1) for i in range(4000)]
    assert 320 < splits.count("validation") < 480
    assert set(splits) == {"train", "validation"}
    # A larger share keeps what was in the smaller one.
    ids = [document_id("u", str(i)) for i in range(500)]
    small = {name for name in ids if split_of(name, 0.05) == "validation"}
    assert small < {name for name in ids if split_of(name, 0.2) == "validation"}


def test_the_funnel_does_not_let_rows_go_missing(tmp_path):
    funnel = Funnel(["raw", "clean"])
    funnel.add("raw", 10, 7, 700, {"empty": 2, "language": 1})
    with pytest.raises(ValueError, match="clean"):
        funnel.add("clean", 7, 5, 500, {"too_few_words": 1})
    other = Funnel()
    other.add("raw", 5, 5, 50, {"empty": 0})
    funnel.merge(other)
    funnel.write(tmp_path)
    steps = Funnel.read(tmp_path).to_json()["steps"]
    assert steps[0] == {
        "name": "raw",
        "in": 15,
        "out": 12,
        "bytes_out": 750,
        "dropped": {"empty": 2, "language": 1},
        "changed": {},
    }
    assert [step["name"] for step in steps] == ["raw", "clean"]


def test_the_card_of_the_stages_has_every_column_and_its_released_name():
    lines = find_data("cards/stages.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "| `" in line]
    stages = {
        "all": TEXT_SCHEMA,
        "from Safe on": SAFE_SCHEMA,
        "High-Quality": DOCUMENT_SCHEMA,
    }
    assert [row[0].strip("`") for row in rows] == DOCUMENT_SCHEMA.names
    known: list[str] = []
    for stage, schema in stages.items():
        known += [row[0].strip("`") for row in rows if row[1] == stage]
        assert known == schema.names
    released = [row[2].split(",")[0].strip("`") for row in rows if row[2]]
    counted = {"token_num", "line_num", "char_num"}
    assert sorted([*released, *counted]) == sorted(RELEASE_SCHEMA.names)
