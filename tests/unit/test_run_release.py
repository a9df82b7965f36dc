"""The release: rows equal to the documents, in every format, the same bytes on a second run."""

import gzip
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t5x_style.artifacts import Artifact
from t5x_style.corpus.documents import (
    DOCUMENT_SCHEMA,
    TEXT_SCHEMA,
    document_id,
    split_of,
    write_shards,
)
from t5x_style.corpus.engine.executors import LocalExecutor
from t5x_style.data.release import MEANINGS, RELEASE_SCHEMA, plan_shards
from t5x_style.data.tfds_shards import example_bytes
from t5x_style.data.vocabulary import Vocabulary, train_vocabulary
from t5x_style.run.release import ReleaseSettings, release

TEXTS = [f"Text {i} é \u201c{i * i}\u201d\n{'and more ' * (i % 5)}\n\n\0 end" for i in range(70)]
TEXTS[1] = "a\nb\n\n\nc\nd"  # five newlines, six lines
SETTINGS = ReleaseSettings(
    name="made_up", version="2.0.1", about="Made.", documents_per_shard=16, json_lines=True
)


def document(number, text):
    return {
        "id": document_id(f"http://example.org/{number}", text),
        "url": f"http://example.org/{number}",
        "title": f"Title {number}",
        "text": text,
        "language": "en",
        "language_score": 0.75,
        "date": None if number == 2 else "2018-06-18T18:54:52Z",
        "dump": "CC-MAIN-2018-26",
        "num_bytes": len(text.encode()),
        "links": [],
        "toxic_score": 0.125 if number % 2 else None,
        "porn_score": None,
        "split": "validation" if number % 7 == 3 else "train",
    }


ROWS = [document(i, text) for i, text in enumerate(TEXTS)]


def write_documents(folder, rows, schema=DOCUMENT_SCHEMA, per_shard=256):
    with Artifact(folder, stage="made", settings={}).write() as writer:
        table = pa.Table.from_pylist(rows, schema)
        write_shards(writer.folder, [table], schema=schema, documents_per_shard=per_shard)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    train_vocabulary(TEXTS, 480).save(folder / "tokenizer.model")
    write_documents(folder / "documents", ROWS)
    release(
        str(folder / "documents"),
        str(folder / "tokenizer.model"),
        str(folder / "out"),
        SETTINGS,
        executor=LocalExecutor(1),
    )
    return folder


def released(row, vocabulary):
    text = row["text"]
    return {
        "id": row["id"],
        "content": text,
        "title": row["title"],
        "language": "en",
        "date": row["date"] or "",
        "token_num": len(vocabulary.encode(text)),
        "cbytes_num": len(text.encode()),
        "line_num": len(text.split("\n")),
        "char_num": len(text),
        "toxic_score": -1.0 if row["toxic_score"] is None else row["toxic_score"],
        "porn_score": -1.0,
        "fluency_score": -1.0,
        "not_ad_score": -1.0,
        "url": row["url"],
        "dump": row["dump"],
    }


@pytest.fixture(scope="module")
def expected(folder):
    vocabulary = Vocabulary.load(folder / "tokenizer.model")
    return {
        split: [released(row, vocabulary) for row in ROWS if row["split"] == split]
        for split in ("train", "validation")
    }


def tables_of(folder, split):
    paths = sorted((folder / "parquet").glob(f"{split}-*.parquet"))
    return [pq.read_table(path) for path in paths]


def test_parquet_and_json_lines_hold_the_released_rows(folder, expected):
    for split, rows in expected.items():
        tables = tables_of(folder / "out", split)
        assert pa.concat_tables(tables).to_pylist() == rows
        lines = []
        for path in sorted((folder / "out" / "jsonl").glob(f"{split}-*.jsonl.gz")):
            lines += gzip.decompress(path.read_bytes()).decode().splitlines()
        assert [json.loads(line) for line in lines] == rows
    assert [len(table) for table in tables_of(folder / "out", "train")] == [16, 16, 16, 12]


def test_counts_are_those_of_the_schema(folder):
    (row,) = (
        row
        for table in tables_of(folder / "out", "train")
        for row in table.to_pylist()
        if row["content"] == TEXTS[1]
    )
    assert (row["line_num"], row["char_num"], row["cbytes_num"]) == (6, 9, 9)
    assert RELEASE_SCHEMA.names[:13] == [
        "id", "content", "title", "language", "date", "token_num", "cbytes_num", "line_num",
        "char_num", "toxic_score", "porn_score", "fluency_score", "not_ad_score",
    ]  # fmt: skip
    assert set(MEANINGS) == set(RELEASE_SCHEMA.names)


def test_files_are_named_as_tfds_wants_them(folder):
    names = sorted(path.name for path in (folder / "out" / "made_up" / "2.0.1").iterdir())
    assert names == [
        "dataset_info.json",
        "features.json",
        *(f"made_up-train.tfrecord-{i:05d}-of-00004" for i in range(4)),
        "made_up-validation.tfrecord-00000-of-00001",
    ]
    info = json.loads((folder / "out" / "made_up" / "2.0.1" / "dataset_info.json").read_text())
    lengths = {split["name"]: split["shardLengths"] for split in info["splits"]}
    assert lengths == {"train": ["16", "16", "16", "12"], "validation": ["10"]}
    readme = (folder / "out" / "README.md").read_text()
    assert "train with 60, validation with 10" in readme
    assert "made_up:2.0.1" in readme


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.mark.slow
def test_a_second_run_with_more_workers_gives_the_same_bytes(folder, tmp_path):
    inputs = str(folder / "documents"), str(folder / "tokenizer.model")
    release(*inputs, str(tmp_path / "again"), SETTINGS, executor=LocalExecutor(2))
    again = digests(tmp_path / "again")
    assert len(again) == 3 + 3 * 5
    assert again == digests(folder / "out")


def test_a_release_that_is_there_is_not_made_again(folder, capsys):
    inputs = str(folder / "documents"), str(folder / "tokenizer.model")
    release(*inputs, str(folder / "out"), SETTINGS)
    assert "is there already" in capsys.readouterr().out


def test_shards_are_planned_over_files_and_splits(tmp_path):
    rows = [{**ROWS[i % 70], "split": "validation" if i == 300 else "train"} for i in range(600)]
    folder = tmp_path / "documents"
    write_documents(folder, rows, per_shard=256)
    paths = sorted(folder.glob("part-*"))
    assert len(paths) == 3
    plans = plan_shards(paths, 400, 0.5)
    cut = [
        (p.split, p.number, p.num_shards, [(piece.first, piece.stop) for piece in p.pieces])
        for p in plans
    ]
    assert cut == [
        ("train", 0, 2, [(0, 256), (0, 144)]),
        ("train", 1, 2, [(144, 255), (0, 88)]),
        ("validation", 0, 1, [(0, 1)]),
    ]


@pytest.mark.slow
def test_documents_without_splits_are_split_by_their_ids(folder, tmp_path):
    documents = write_documents(tmp_path / "documents", ROWS, TEXT_SCHEMA)
    settings = ReleaseSettings(validation_share=0.3, parquet=True)
    model = str(folder / "tokenizer.model")
    release(documents, model, str(tmp_path / "out"), settings, executor=LocalExecutor(1))
    for split in ("train", "validation"):
        ids = [row["id"] for t in tables_of(tmp_path / "out", split) for row in t.to_pylist()]
        assert ids == [row["id"] for row in ROWS if split_of(row["id"], 0.3) == split]
        assert ids
    assert not (tmp_path / "out" / "jsonl").exists()


def test_what_makes_no_sense_is_refused(folder, tmp_path):
    model = str(folder / "tokenizer.model")
    out = str(tmp_path / "out")
    with pytest.raises(ValueError, match=r"ReleaseSettings\.name = 'My corpus'"):
        ReleaseSettings(name="My corpus")
    with pytest.raises(ValueError, match=r"ReleaseSettings\.version = '1'"):
        ReleaseSettings(version="1")
    with pytest.raises(ValueError, match="no finished stage folder"):
        release(str(tmp_path), model, out)
    with pytest.raises(ValueError, match="documents_per_shard = 0"):
        release(str(folder / "documents"), model, out, ReleaseSettings(documents_per_shard=0))
    odd = write_documents(tmp_path / "odd", [{**ROWS[0], "split": "test"}])
    with pytest.raises(ValueError, match="of the split 'test'; splits are train and validation"):
        release(odd, model, out)
    empty = write_documents(tmp_path / "empty", [])
    with pytest.raises(ValueError, match="no document shards"):
        release(empty, model, out)


@pytest.mark.slow
def test_examples_are_those_that_tensorflow_makes(folder, expected):
    import tensorflow as tf

    rows = [
        *expected["train"][:5],
        {**expected["train"][0], "token_num": 0, "line_num": 1 << 40, "content": ""},
    ]
    for row in rows:
        feature = {}
        for field in RELEASE_SCHEMA:
            value = row[field.name]
            feature[field.name] = {
                pa.string(): lambda v: tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[v.encode()])
                ),
                pa.int64(): lambda v: tf.train.Feature(int64_list=tf.train.Int64List(value=[v])),
                pa.float32(): lambda v: tf.train.Feature(float_list=tf.train.FloatList(value=[v])),
            }[field.type](value)
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        data = example_bytes(row, RELEASE_SCHEMA)
        assert tf.train.Example.FromString(data) == example
        assert data == example.SerializeToString(deterministic=True)


def plain(example):
    return {
        name: value.decode() if isinstance(value, bytes) else value.item()
        for name, value in example.items()
    }


@pytest.mark.slow
def test_tfds_reads_the_rows(folder, expected):
    import tensorflow_datasets as tfds

    by_folder = tfds.builder_from_directory(folder / "out" / "made_up" / "2.0.1")
    for split, rows in expected.items():
        assert by_folder.info.splits[split].num_examples == len(rows)
        for data in (
            by_folder.as_dataset(split=split),
            tfds.load("made_up:2.0.1", data_dir=str(folder / "out"), split=split),
        ):
            assert [plain(example) for example in data.as_numpy_iterator()] == rows


@pytest.mark.slow
def test_a_seqio_task_yields_the_texts_of_both_splits(folder, expected):
    import seqio
    import tensorflow as tf

    from t5x_style.data.seqio_tasks import SeqioVocabulary

    vocabulary = Vocabulary.load(folder / "tokenizer.model")
    source = seqio.TfdsDataSource(
        "made_up:2.0.1", tfds_data_dir=str(folder / "out"), splits=["train", "validation"]
    )
    assert source.num_input_examples("train") == 60
    assert len(source.list_shards("train")) == 4
    name = "released_made_up"
    seqio.TaskRegistry.remove(name)
    task = seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            lambda dataset: dataset.map(lambda row: {"targets": row["content"]}),
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos,
        ],
        output_features={
            "targets": seqio.Feature(SeqioVocabulary(vocabulary), add_eos=True, dtype=tf.int32)
        },
    )
    for split, rows in expected.items():
        examples = task.get_dataset(None, split, shuffle=False).as_numpy_iterator()
        ids = [example["targets"] for example in examples]
        assert [vocabulary.decode(row[:-1].tolist()) for row in ids] == [
            row["content"] for row in rows
        ]
        assert all(row[-1] == vocabulary.eos_id for row in ids)
    halves = [
        task.get_dataset(
            None, "train", shuffle=False, shard_info=seqio.ShardInfo(index, 2)
        ).as_numpy_iterator()
        for index in range(2)
    ]
    counts = [sum(1 for _ in half) for half in halves]
    assert sum(counts) == 60
    assert min(counts) > 0
    assert np.array(counts).tolist() == [32, 28]
