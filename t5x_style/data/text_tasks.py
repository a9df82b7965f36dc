"""What a text task is made of, and reading its documents: curated shards, JSONL or plain text.

No TensorFlow here, so that recipes can name tasks at no cost. `seqio_tasks` turns a `TextTask`
into a seqio Task; `run.tasks` writes its token stores.
"""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from t5x_style.corpus.documents import document_id, shard_paths, split_of
from t5x_style.data.text_files import kind_of, matching_files, open_bytes

SPLITS = ("train", "validation")

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TextTask:
    """Documents to train on under one name.

    Files are Parquet (.parquet), a JSON object a line (.jsonl, .jsonl.gz) or plain text (.txt,
    .md, either with .gz). With no files at all the task reads the curated documents that
    `run.tasks` is given.

    Attributes:
      name: name of the task, of its folder and of the seqio Task: letters, digits and _.
      train_files: path, glob pattern (** included) or several of them.
      validation_files: the same for held-out text; if None, `validation_share` of the training
        documents is held out by a hash of their text.
      validation_share: share held out so; a record whose own `split` says "train" or
        "validation", as those of curated documents do, goes where it says.
      text_field: column or key that holds the text.
      separator: cuts plain text files into documents ("\\n": one a line); None: a file is one.
      matching: column to regular expression; keeps records in which it is found.
      at_least: column to number; keeps records with at least this value.
    """

    name: str
    train_files: str | Sequence[str] | None = None
    validation_files: str | Sequence[str] | None = None
    validation_share: float = 0.01
    text_field: str = "text"
    separator: str | None = None
    matching: Mapping[str, str] = dataclasses.field(default_factory=dict)
    at_least: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise ValueError(
                f"TextTask.name = {self.name!r} may have letters, digits and _ only: it names a "
                "folder and a seqio Task"
            )
        if not 0 <= self.validation_share < 1:
            raise ValueError(
                f"TextTask.validation_share = {self.validation_share} is not in [0, 1)"
            )
        if self.validation_files is not None and self.train_files is None:
            raise ValueError(
                f"task {self.name} has TextTask.validation_files but no TextTask.train_files"
            )
        for column, pattern in self.matching.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"TextTask.matching[{column!r}] = {pattern!r} is no regular expression: {error}"
                ) from error


def task_files(task: TextTask, documents: str | os.PathLike[str] | None) -> dict[str, list[Path]]:
    """Returns the files to read for each split, in a fixed order.

    Args:
      task: the task.
      documents: folder of curated shards, for a task without files of its own.

    Raises:
      ValueError: a pattern matches no file, a file is of a kind that is not read, a Parquet file
        has not the columns that the task names, or the task needs `documents` and there are none.
    """
    if task.train_files is None:
        if documents is None:
            raise ValueError(
                f"task {task.name} names no files: set TextTask.train_files, or tasks.documents to "
                "the folder of curated documents"
            )
        train = shard_paths(documents)
    else:
        train = matching_files(task.train_files, _KINDS, f"task {task.name}: TextTask.train_files")
    validation = train
    if task.validation_files is not None:
        setting = f"task {task.name}: TextTask.validation_files"
        validation = matching_files(task.validation_files, _KINDS, setting)
    for path in dict.fromkeys([*train, *validation]):
        if _kind(path) == ".parquet":
            _check_columns(task, path)
    return {"train": train, "validation": validation}


def read_texts(
    task: TextTask, split: str, files: Iterable[str | os.PathLike[str]], dropped: Counter[str]
) -> Iterator[str]:
    """Yields the texts of one split.

    Args:
      task: the task.
      split: "train" or "validation".
      files: from `task_files`, or some of them.
      dropped: counts under a reason each record that is not yielded; written in place.
    """
    held_out_by_share = task.validation_files is None
    conditions = _conditions(task)
    for path in files:
        for record in _records(task, Path(path)):
            if isinstance(record, str):
                dropped[record] += 1
                continue
            text = record.get(task.text_field)
            if not isinstance(text, str) or not text:
                dropped[f"no text in {task.text_field!r}"] += 1
                continue
            failed = next((name for name, holds in conditions if not holds(record)), None)
            if failed is not None:
                dropped[failed] += 1
                continue
            try:
                text.encode()
            except UnicodeEncodeError:
                dropped["lone surrogate"] += 1
                continue
            if held_out_by_share:
                own = record.get("split")
                if own not in SPLITS:
                    own = split_of(document_id("", text), task.validation_share)
                if own != split:
                    dropped["other split"] += 1
                    continue
            yield text


def _conditions(task: TextTask) -> list[tuple[str, Callable[[Record], bool]]]:
    conditions: list[tuple[str, Callable[[Record], bool]]] = []
    for column, pattern in task.matching.items():
        search = re.compile(pattern).search
        conditions.append(
            (
                f"{column} does not match",
                lambda record, column=column, search=search: (
                    search(str(record.get(column, ""))) is not None
                ),
            )
        )
    for column, least in task.at_least.items():
        conditions.append(
            (
                f"{column} below {least}",
                lambda record, column=column, least=least: _number(record.get(column)) >= least,
            )
        )
    return conditions


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("-inf")


def _records(task: TextTask, path: Path) -> Iterator[Record | str]:
    """Yields the records of a file, or for one that cannot be read the reason why."""
    kind = _kind(path)
    if kind == ".parquet":
        yield from _parquet_records(task, path)
    elif kind == ".jsonl":
        with open_bytes(path) as file:
            for line in file:
                if line.strip():
                    yield _json_record(line)
    else:
        with open_bytes(path) as file:
            try:
                text = file.read().decode("utf-8-sig")
            except UnicodeDecodeError:
                yield "not UTF-8"
                return
        parts = [text] if task.separator is None else text.split(task.separator)
        yield from ({task.text_field: part} for part in parts if part.strip())


def _json_record(line: bytes) -> Record | str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return "not JSON"
    return record if isinstance(record, dict) else "not a JSON object"


def _parquet_records(task: TextTask, path: Path) -> Iterator[Record]:
    with pq.ParquetFile(path) as file:
        columns = _named_columns(task) + (["split"] if "split" in file.schema_arrow.names else [])
        for batch in file.iter_batches(batch_size=256, columns=columns):
            yield from batch.to_pylist()


def _named_columns(task: TextTask) -> list[str]:
    return sorted({task.text_field, *task.matching, *task.at_least} - {"split"})


def _check_columns(task: TextTask, path: Path) -> None:
    there = pq.read_schema(path).names
    if missing := sorted({task.text_field, *task.matching, *task.at_least} - set(there)):
        raise ValueError(
            f"{path} has no column {', '.join(missing)}, which task {task.name} names in "
            f"TextTask.text_field, .matching or .at_least; it has {', '.join(there)}"
        )


_KINDS = {".parquet": ".parquet", ".jsonl": ".jsonl", ".ndjson": ".jsonl", ".txt": "", ".md": ""}


def _kind(path: Path) -> str:
    return _KINDS[kind_of(path)]
