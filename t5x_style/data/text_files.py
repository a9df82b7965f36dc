"""Files that a setting names by patterns, of kinds known by their suffix, compressed or not."""

import glob
import gzip
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any


def kind_of(path: Path) -> str:
    """Returns the suffix of a file, that before .gz of a compressed one."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def open_bytes(path: Path) -> Any:
    """Opens a file, which may be compressed by gzip, to read its bytes."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def matching_files(
    patterns: str | Sequence[str], kinds: Collection[str], setting: str
) -> list[Path]:
    """Returns the files that patterns name, those of each pattern in order.

    Args:
      patterns: paths or glob patterns, ** included.
      kinds: suffixes that are read; each may have .gz after it.
      setting: the gin name of what names them, for errors.

    Raises:
      ValueError: a pattern matches no file, or a file is of another kind.
    """
    paths: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
        if not found:
            raise ValueError(f"{setting} = {pattern!r} matches no file")
        paths.extend(Path(path) for path in found)
    for path in paths:
        if kind_of(path) not in kinds:
            raise ValueError(
                f"{setting}: {path} is none of {', '.join(kinds)} (or one of these with .gz)"
            )
    return paths
