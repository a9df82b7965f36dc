"""The schema between corpus and data: documents in Parquet shards, and the funnel beside them.

Every stage of the corpus that keeps documents writes this schema; `data` reads it. What the
columns mean is fixed here. How documents come to be (extraction, rules, deduplication) is left
to the pipelines; the folder's commit is left to `t5x_style.artifacts`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

LINK_TYPE = pa.struct(
    [
        pa.field("url", pa.string()),
        pa.field("anchor", pa.string()),
        # Character offsets into `text`; -1 where the link lies outside the kept text.
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
    ]
)

# What the stages pass on; `split` is decided last, when no near-duplicates are left.
TEXT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("url", pa.string()),
        pa.field("title", pa.string()),
        pa.field("text", pa.string()),
        pa.field("language", pa.string()),
        pa.field("language_score", pa.float32()),
        pa.field("date", pa.string()),
        pa.field("dump", pa.string()),
        pa.field("num_bytes", pa.int64()),
        pa.field("links", pa.list_(LINK_TYPE)),
    ]
)
# Judgements of models from 0 to 1, null where there was none: of the first two more is worse, of
# the others more is better.
SAFETY_SCORES = ("toxic_score", "porn_score")
QUALITY_SCORES = ("fluency_score", "not_ad_score")
SAFE_SCHEMA = pa.schema([*TEXT_SCHEMA, *(pa.field(name, pa.float32()) for name in SAFETY_SCORES)])
SCORED_SCHEMA = pa.schema(
    [*SAFE_SCHEMA, *(pa.field(name, pa.float32()) for name in QUALITY_SCORES)]
)
DOCUMENT_SCHEMA = SCORED_SCHEMA.append(pa.field("split", pa.string()))

FUNNEL_NAME = "funnel.json"
_ID_BYTES = 16
_ROWS_PER_GROUP = 256


def document_id(url: str, text: str) -> str:
    """Returns the stable id of a document: hex BLAKE2b-128 of its address and text."""
    digest = hashlib.blake2b(digest_size=_ID_BYTES)
    address = url.encode("utf-8", "surrogatepass")
    digest.update(len(address).to_bytes(8, "little"))
    digest.update(address)
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def split_of(document_id: str, validation_share: float) -> str:
    """Returns "validation" for about `validation_share` of the ids, "train" for the others."""
    draw = hashlib.blake2b(f"split {document_id}".encode(), digest_size=8).digest()
    return "validation" if int.from_bytes(draw, "little") < validation_share * 2.0**64 else "train"


def with_splits(table: pa.Table, validation_share: float) -> pa.Table:
    """Returns the table (SCORED_SCHEMA) with its `split` column, by hash of the id."""
    splits = [split_of(name, validation_share) for name in table["id"].to_pylist()]
    return table.append_column(DOCUMENT_SCHEMA.field("split"), pa.array(splits, pa.string()))


def write_shards(
    folder: str | os.PathLike[str],
    tables: Iterable[pa.Table | pa.RecordBatch],
    *,
    schema: pa.Schema = DOCUMENT_SCHEMA,
    documents_per_shard: int = 8192,
) -> list[Path]:
    """Writes documents as `part-00000.parquet`, ... and returns the paths.

    The bytes depend on the rows and their order only, not on how they were cut into tables.

    Args:
      folder: existing folder.
      tables: documents in order; their columns must be those of `schema`.
      schema: schema of the shards.
      documents_per_shard: rows of each shard but the last.
    """
    paths: list[Path] = []
    writer: pq.ParquetWriter | None = None
    rows_in_shard = 0
    try:
        for group in _regrouped(tables, schema):
            if writer is None:
                paths.append(Path(folder) / f"part-{len(paths):05d}.parquet")
                writer = pq.ParquetWriter(paths[-1], schema, compression="zstd")
                rows_in_shard = 0
            writer.write_table(group, row_group_size=_ROWS_PER_GROUP)
            rows_in_shard += group.num_rows
            if rows_in_shard >= documents_per_shard:
                writer.close()
                writer = None
    finally:
        if writer is not None:
            writer.close()
    return paths


def _regrouped(
    tables: Iterable[pa.Table | pa.RecordBatch], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Cuts a stream of tables into row groups of one size, so that batch size leaves no trace."""
    held: list[pa.Table] = []
    num_held = 0
    for piece in tables:
        table = pa.Table.from_batches([piece]) if isinstance(piece, pa.RecordBatch) else piece
        table = table.select(schema.names).cast(schema).replace_schema_metadata(None)
        held.append(table)
        num_held += table.num_rows
        while num_held >= _ROWS_PER_GROUP:
            joined = pa.concat_tables(held)
            yield joined.slice(0, _ROWS_PER_GROUP).combine_chunks()
            held = [joined.slice(_ROWS_PER_GROUP)]
            num_held = held[0].num_rows
    if num_held:
        yield pa.concat_tables(held).combine_chunks()


def shard_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Returns the shards of a folder in order.

    Raises:
      ValueError: the folder holds none.
    """
    paths = sorted(Path(folder).glob("part-*.parquet"))
    if not paths:
        raise ValueError(
            f"no document shards (part-*.parquet) in {os.fspath(folder)}: give the output folder "
            "of a finished stage"
        )
    return paths


def read_documents(
    folder: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    batch_rows: int = _ROWS_PER_GROUP,
) -> Iterator[pa.RecordBatch]:
    """Yields the documents of a folder in order, a few hundred at a time.

    Args:
      folder: output folder of a corpus stage.
      columns: names of the columns to read; all by default.
      batch_rows: most rows of a batch.
    """
    yield from shard_batches(shard_paths(folder), columns, batch_rows)


def shard_batches(
    paths: Iterable[str | os.PathLike[str]],
    columns: Sequence[str] | None = None,
    batch_rows: int = _ROWS_PER_GROUP,
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of shards, as `read_documents` does."""
    for path in paths:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(
                batch_size=batch_rows, columns=None if columns is None else list(columns)
            )


@dataclasses.dataclass
class FunnelStep:
    """What one step did: rows in and out, bytes out, rows dropped under each reason.

    `changed` counts what it altered in the rows that it kept, such as personal data masked.
    """

    name: str
    num_in: int = 0
    num_out: int = 0
    bytes_out: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    changed: dict[str, int] = dataclasses.field(default_factory=dict)


class Funnel:
    """Counts of the steps of a pipeline, in order; adds up over batches, files and workers."""

    def __init__(self, names: Iterable[str] = ()):
        self.steps: dict[str, FunnelStep] = {name: FunnelStep(name) for name in names}

    def add(self, name: str, num_in: int, num_out: int, bytes_out: int, dropped: Mapping[str, int]):
        """Adds counts to a step.

        Raises:
          ValueError: rows went missing: `num_in != num_out + sum(dropped)`.
        """
        if num_in != num_out + sum(dropped.values()):
            raise ValueError(
                f"step {name!r} took {num_in} rows, kept {num_out} and dropped {dict(dropped)}: "
                "every row it does not keep must be counted under a reason"
            )
        step = self.steps.setdefault(name, FunnelStep(name))
        step.num_in += num_in
        step.num_out += num_out
        step.bytes_out += bytes_out
        for reason, count in dropped.items():
            if count:
                step.dropped[reason] = step.dropped.get(reason, 0) + count

    def add_changes(self, name: str, changed: Mapping[str, int]) -> None:
        """Adds to the counts of what a step altered."""
        counts = self.steps.setdefault(name, FunnelStep(name)).changed
        for kind, count in changed.items():
            if count:
                counts[kind] = counts.get(kind, 0) + count

    def merge(self, other: "Funnel") -> None:
        """Adds the counts of another funnel, step by step."""
        for step in other.steps.values():
            self.add(step.name, step.num_in, step.num_out, step.bytes_out, step.dropped)
            self.add_changes(step.name, step.changed)

    def to_json(self) -> dict[str, Any]:
        """Returns {"steps": [{"name", "in", "out", "bytes_out", "dropped", "changed"}, ...]}."""
        return {
            "steps": [
                {
                    "name": step.name,
                    "in": step.num_in,
                    "out": step.num_out,
                    "bytes_out": step.bytes_out,
                    "dropped": dict(sorted(step.dropped.items())),
                    "changed": dict(sorted(step.changed.items())),
                }
                for step in self.steps.values()
            ]
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Funnel":
        """Returns the funnel that `to_json` described."""
        funnel = cls()
        for step in value["steps"]:
            funnel.add(step["name"], step["in"], step["out"], step["bytes_out"], step["dropped"])
            funnel.add_changes(step["name"], step.get("changed", {}))
        return funnel

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes `funnel.json` into the folder."""
        text = json.dumps(self.to_json(), indent=1) + "\n"
        (Path(folder) / FUNNEL_NAME).write_text(text)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> "Funnel":
        """Reads `funnel.json` from a stage's folder."""
        return cls.from_json(json.loads((Path(folder) / FUNNEL_NAME).read_text()))

    def lines(self) -> list[str]:
        """Returns the funnel as lines for a log."""
        lines = []
        for step in self.steps.values():
            reasons = ", ".join(
                f"{reason} {count}"
                for reason, count in sorted(step.dropped.items(), key=lambda item: -item[1])
            )
            lines.append(
                f"{step.name:<10} {step.num_in:>9} -> {step.num_out:<9} "
                f"{step.bytes_out / 1e6:>8.1f} MB" + (f"   dropped: {reasons}" if reasons else "")
            )
        return lines
