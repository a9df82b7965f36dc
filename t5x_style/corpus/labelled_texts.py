"""Texts with a label, from JSON lines that a user gives: `{"text": "...", "label": 1}`."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

Labelled = tuple[list[str], list[bool]]


def read_labelled(paths: Iterable[str | os.PathLike[str]], *, setting: str) -> Labelled:
    """Reads texts and labels.

    Args:
      paths: files of JSON lines; a label is true, false, 1 or 0.
      setting: the gin name of what names them, for errors.

    Raises:
      ValueError: a file is not there, or a line is none of these; names file and line.
    """
    texts, labels = [], []
    for path in map(Path, paths):
        if not path.is_file():
            raise ValueError(f"{setting}: there is no file {path}")
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    example = json.loads(line)
                    text, label = example["text"], example["label"]
                except (ValueError, KeyError, TypeError):
                    text = label = None
                if not isinstance(text, str) or label not in (0, 1):
                    raise ValueError(
                        f"{setting}: {path}, line {number}, is no example such as "
                        '{"text": "...", "label": 1}, with a label of 0 or 1'
                    )
                texts.append(text)
                labels.append(bool(label))
    return texts, labels


def known_and_test(
    examples: str | Sequence[str],
    test_examples: str | Sequence[str],
    held_out_share: float,
    *,
    verb: str,
) -> tuple[Labelled, Labelled]:
    """Reads what to train on and what to measure on.

    Args:
      examples: a file or files of JSON lines.
      test_examples: the same to measure on; none: a share of the examples, by hash of the text.
      held_out_share: that share.
      verb: gin name of the verb that has these two settings, for errors.

    Raises:
      ValueError: as `read_labelled`; or nothing is left on one side.
    """
    known = read_labelled(listed(examples), setting=f"{verb}.examples")
    if paths := listed(test_examples):
        test = read_labelled(paths, setting=f"{verb}.test_examples")
    else:
        known, test = held_out(known, held_out_share)
    if not known[0] or not test[0]:
        raise ValueError(
            f"{len(known[0])} texts to train on and {len(test[0])} to measure on: give more in "
            f"{verb}.examples, or others in {verb}.test_examples"
        )
    return known, test


def listed(paths: str | Sequence[str]) -> list[str]:
    """Returns a setting that is one path or several as a list."""
    return [paths] if isinstance(paths, str) else list(paths)


def held_out(examples: Labelled, share: float) -> tuple[Labelled, Labelled]:
    """Divides examples in two by hash of the text, so that equal texts are on one side.

    Returns:
      Those to train on, and about `share` of them to measure on.
    """
    parts: tuple[Labelled, Labelled] = (([], []), ([], []))
    for text, label in zip(*examples, strict=True):
        draw = hashlib.blake2b(f"held out {text}".encode(), digest_size=8).digest()
        texts, labels = parts[int.from_bytes(draw, "little") < share * 2.0**64]
        texts.append(text)
        labels.append(label)
    return parts
