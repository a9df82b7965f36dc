"""What a task of conversations is made of, and its examples: ids, and which of them are learnt.

The chat format is `chat`'s affair, the forms of files `chat_readers`'; `run.chat_tasks` writes
the token stores.
"""

import contextlib
import dataclasses
import glob
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from t5x_style.config.paths import find_data
from t5x_style.corpus.documents import document_id, split_of
from t5x_style.data.chat import ChatFormat, Conversation
from t5x_style.data.chat_readers import KINDS, Dropped, read_conversations
from t5x_style.data.text_files import matching_files
from t5x_style.data.text_tasks import SPLITS

TOO_LONG = ("cut", "drop")


@dataclasses.dataclass(frozen=True)
class ChatTask:
    """Conversations to train on under one name.

    Attributes:
      name: name of the task and of its folder: letters, digits and _.
      train_files: path, glob pattern (** included) or several of them; of the kinds that
        `chat_readers` reads. A path that is not there may be one of this project's `data/`.
      validation_files: the same for held-out conversations; if None, `validation_share` of the
        others is held out by a hash of their turns.
      validation_share: share held out so; a record whose own `split` says "train" or
        "validation" goes where it says.
      max_tokens: most predictions of a conversation: the length of the rows to train with, across
        which none is to be broken. None: no limit.
      too_long: "cut" ends a longer one after the last answer that fits, "drop" leaves it out.
    """

    name: str
    train_files: str | Sequence[str]
    validation_files: str | Sequence[str] | None = None
    validation_share: float = 0.01
    max_tokens: int | None = 32768
    too_long: str = "cut"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name, re.ASCII):
            raise ValueError(
                f"ChatTask.name = {self.name!r} may have letters, digits and _ only: it names a "
                "folder"
            )
        if not 0 <= self.validation_share < 1:
            raise ValueError(
                f"ChatTask.validation_share = {self.validation_share} is not in [0, 1)"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"ChatTask.max_tokens = {self.max_tokens} is below 1")
        if self.too_long not in TOO_LONG:
            raise ValueError(
                f"ChatTask.too_long = {self.too_long!r} is none of {', '.join(TOO_LONG)}"
            )


class ChatExample(NamedTuple):
    """One conversation to train on.

    Attributes:
      ids: int32[T], bos first.
      is_target: bool[T], the ids that the assistant writes.
      is_cut: whether the conversation goes on after them.
    """

    ids: np.ndarray
    is_target: np.ndarray
    is_cut: bool


def chat_files(task: ChatTask) -> dict[str, list[Path]]:
    """Returns the files to read for each split, in a fixed order.

    Raises:
      ValueError: a pattern matches no file, or a file is of a kind that is not read.
    """
    about = f"task {task.name}: ChatTask"
    train = matching_files(_placed(task.train_files), KINDS, f"{about}.train_files")
    if task.validation_files is None:
        return {"train": train, "validation": train}
    held_out = _placed(task.validation_files)
    validation = matching_files(held_out, KINDS, f"{about}.validation_files")
    return {"train": train, "validation": validation}


def chat_examples(
    task: ChatTask, split: str, files: Sequence[Path], chat: ChatFormat, dropped: Dropped
) -> Iterator[ChatExample]:
    """Yields the conversations of one split, each up to its last answer.

    Args:
      task: the task.
      split: "train" or "validation".
      files: from `chat_files`, or some of them.
      chat: makes the ids.
      dropped: counts under a reason each record that is not yielded; written in place.
    """
    held_out_by_share = task.validation_files is None
    for turns, record, place in read_conversations(files, dropped):
        if held_out_by_share:
            own = record.get("split")
            if own not in SPLITS:
                own = split_of(_identity(turns), task.validation_share)
            if own != split:
                dropped.add("other split", place)
                continue
        answers = [at for at, turn in enumerate(turns) if turn.role == "assistant"]
        if not answers:
            dropped.add("no turn of the assistant", place)
            continue
        if not all(turns[at].content or turns[at].calls for at in answers):
            dropped.add("an answer is empty", place)
            continue
        rendered = chat.render(turns)
        ends = rendered.turn_ends[answers]
        fitting = ends if task.max_tokens is None else ends[ends <= task.max_tokens + 1]
        is_cut = len(fitting) < len(ends)
        if not len(fitting) or (is_cut and task.too_long == "drop"):
            dropped.add(f"longer than {task.max_tokens} tokens", place)
            continue
        stop = int(fitting[-1])
        yield ChatExample(rendered.ids[:stop], rendered.is_target[:stop], is_cut)


def _placed(patterns: str | Sequence[str]) -> list[str]:
    """Returns patterns with what names a file of the project's own where that lies."""
    placed = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if pattern.startswith("data/") and not glob.glob(pattern, recursive=True):
            with contextlib.suppress(ValueError):
                pattern = str(find_data(pattern))
        placed.append(pattern)
    return placed


def _identity(turns: Conversation) -> str:
    return document_id("", json.dumps([dataclasses.astuple(turn) for turn in turns]))
