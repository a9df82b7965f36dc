"""Released rows of documents: WanJuan-CC's schema, and the shards that they are written as.

The fields are those of the paper's release (arXiv 2402.19282) with `url` and `dump` besides. Which
rows a shard holds is planned before any is written, so that each shard can be written by itself.
"""

import contextlib
import dataclasses
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from t5x_style.corpus.documents import split_of
from t5x_style.data.text_tasks import SPLITS
from t5x_style.data.tfds_shards import Shard, ShardWriter, shard_name

NO_SCORE = -1.0
SCORES = {
    "toxic_score": "higher is more likely toxic",
    "porn_score": "higher is more likely pornographic",
    "fluency_score": "higher is better",
    "not_ad_score": "higher is less likely an advertisement",
}
MEANINGS = {
    "id": "unique name of the document",
    "content": "the text",
    "title": "title of the page",
    "language": "ISO 639-1 code",
    "date": "of the crawl, ISO 8601",
    "token_num": "tokens of the content",
    "cbytes_num": "bytes of the content in UTF-8",
    "line_num": "lines of the content, split at newlines",
    "char_num": "characters of the content",
    **{name: f"0 to 1, {meaning}; -1 where there is none" for name, meaning in SCORES.items()},
    "url": "address of the page",
    "dump": "name of the crawl",
}
RELEASE_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("id", "content", "title", "language", "date")),
        *(pa.field(f"{name}_num", pa.int64()) for name in ("token", "cbytes", "line", "char")),
        *(pa.field(name, pa.float32()) for name in SCORES),
        *(pa.field(name, pa.string()) for name in ("url", "dump")),
    ]
)
_TEXT_FIELDS = ("id", "title", "language", "date", "url", "dump")
_BATCH_ROWS = 256

CountTokens = Callable[[Sequence[str]], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Piece:
    """Rows `first` to `stop` of those of a split in one file."""

    path: Path
    first: int
    stop: int


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """One shard to write.

    Attributes:
      split: its split.
      number, num_shards: its place among those of the split.
      pieces: its rows, in order.
      validation_share: for files that have no splits of their own.
    """

    split: str
    number: int
    num_shards: int
    pieces: tuple[Piece, ...]
    validation_share: float


def plan_shards(
    paths: Sequence[Path], documents_per_shard: int, validation_share: float
) -> list[ShardPlan]:
    """Cuts the documents of each split into shards, in the order of the files.

    Args:
      paths: Parquet shards of documents (`corpus.documents`).
      documents_per_shard: rows of each shard but the last of a split.
      validation_share: share of the documents, by hash of their id, in the validation split where
        the documents have no `split` of their own.

    Raises:
      ValueError: there is no document, a setting makes no sense, or a document is of another split.
    """
    if documents_per_shard < 1 or not 0 <= validation_share < 1:
        raise ValueError(
            f"release.ReleaseSettings.documents_per_shard = {documents_per_shard} must be above 0, "
            f"and validation_share = {validation_share} in [0, 1)"
        )
    pieces: dict[str, list[list[Piece]]] = {split: [] for split in SPLITS}
    room: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for path in paths:
        counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
        for _, splits in _batches_with_splits(path, [], validation_share):
            for split in splits:
                counts[split] += 1
        for split, count in counts.items():
            first = 0
            while first < count:
                if not room[split]:
                    pieces[split].append([])
                    room[split] = documents_per_shard
                stop = min(count, first + room[split])
                pieces[split][-1].append(Piece(path, first, stop))
                room[split] -= stop - first
                first = stop
    plans = [
        ShardPlan(split, number, len(of_split), tuple(of_shard), validation_share)
        for split, of_split in pieces.items()
        for number, of_shard in enumerate(of_split)
    ]
    if not plans:
        raise ValueError(
            f"there is no document in {paths[0].parent}: give another release.documents"
        )
    return plans


def write_shard(
    plan: ShardPlan,
    folder: Path,
    name: str,
    version: str,
    count_tokens: CountTokens,
    *,
    parquet: bool,
    json_lines: bool,
) -> Shard:
    """Writes one shard as TFRecord, and as what else is asked for; a few hundred rows in memory.

    Args:
      plan: which rows.
      folder: of the release: TFRecord goes to `name/version` in it, the others to `parquet` and
        `jsonl`, all of which are there.
      name, version: of the data set.
      count_tokens: texts to the number of tokens of each.
      parquet, json_lines: whether to write these as well.

    Returns:
      What the shard holds.
    """
    stem = f"{plan.split}-{plan.number:05d}-of-{plan.num_shards:05d}"
    path = folder / name / version / shard_name(name, plan.split, plan.number, plan.num_shards)
    with contextlib.ExitStack() as stack:
        records = ShardWriter(path, RELEASE_SCHEMA)
        stack.callback(records.close)
        table_file = lines_file = None
        if parquet:
            table_path = folder / "parquet" / f"{stem}.parquet"
            table_file = stack.enter_context(
                pq.ParquetWriter(table_path, RELEASE_SCHEMA, compression="zstd")
            )
        if json_lines:
            raw = stack.enter_context(open(folder / "jsonl" / f"{stem}.jsonl.gz", "wb"))
            # Without name and time of the file, which would differ from run to run.
            lines_file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
        for table in released_tables(plan, count_tokens):
            rows = table.to_pylist()
            records.write(rows)
            if table_file is not None:
                table_file.write_table(table)
            if lines_file is not None:
                lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                lines_file.write("".join(lines).encode("utf-8"))
    return Shard(plan.split, records.num_examples, records.num_bytes)


def released_tables(plan: ShardPlan, count_tokens: CountTokens) -> Iterator[pa.Table]:
    """Yields the rows of a shard (RELEASE_SCHEMA), a few hundred at a time."""
    for piece in plan.pieces:
        number = 0
        names = ["id", "url", "title", "text", "language", "date", "dump", *SCORES]
        for batch, splits in _batches_with_splits(piece.path, names, plan.validation_share):
            chosen = []
            for place, split in enumerate(splits):
                if split == plan.split:
                    if piece.first <= number < piece.stop:
                        chosen.append(place)
                    number += 1
            if chosen:
                yield _released(batch.take(pa.array(chosen)), count_tokens)
            if number >= piece.stop:
                break


def _released(batch: pa.RecordBatch, count_tokens: CountTokens) -> pa.Table:
    columns = batch.to_pydict()
    texts = columns["text"]
    released: dict[str, list[Any]] = {
        name: [value or "" for value in columns[name]] for name in _TEXT_FIELDS
    }
    released |= {
        "content": texts,
        "token_num": list(count_tokens(texts)),
        "cbytes_num": [len(text.encode("utf-8")) for text in texts],
        "line_num": [1 + text.count("\n") for text in texts],
        "char_num": [len(text) for text in texts],
    }
    for name in SCORES:
        scores = columns.get(name, [None] * len(texts))
        released[name] = [NO_SCORE if score is None else score for score in scores]
    return pa.table({name: released[name] for name in RELEASE_SCHEMA.names}, RELEASE_SCHEMA)


def _batches_with_splits(
    path: Path, names: Sequence[str], validation_share: float
) -> Iterator[tuple[pa.RecordBatch, list[str]]]:
    """Yields a file's rows, with those of the columns that it has, and the split of each."""
    with pq.ParquetFile(path) as file:
        there = file.schema_arrow.names
        columns = [name for name in dict.fromkeys([*names, "id", "split"]) if name in there]
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            ids = batch["id"].to_pylist()
            own = batch["split"].to_pylist() if "split" in there else [None] * len(ids)
            splits = [
                split or split_of(name, validation_share)
                for name, split in zip(ids, own, strict=True)
            ]
            if unknown := set(splits) - set(SPLITS):
                raise ValueError(
                    f"{path} has documents of the split {sorted(unknown)[0]!r}; splits are "
                    f"{' and '.join(SPLITS)}"
                )
            yield batch, splits
