"""What a stage leaves behind: a folder that appears whole or not at all.

A stage writes into a temporary folder beside its output, which is renamed into place once its
manifest is complete. The manifest holds the key of the settings and inputs that made the folder,
so that running the same command again skips finished stages, redoes changed ones, and resumes
after a kill at any moment. Training keeps its own checkpoints and does not use this module.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MANIFEST_NAME = "manifest.json"
_FORMAT = 1
_READ_BYTES = 1 << 20


def below(folder: str, name: str) -> str:
    """Returns a path below a folder, so that a recipe names its root once."""
    return f"{folder}/{name}"


def file_digest(path: str | os.PathLike[str]) -> str:
    """Returns the hex BLAKE2b-128 digest of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Reduces a setting to JSON values; dataclasses keep their class name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ValueError(
        f"a stage's settings are plain values and dataclasses, not {type(value).__name__}: "
        f"{value!r} could not be written to a manifest"
    )


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the manifest of a committed stage folder.

    Raises:
      ValueError: the folder is none.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(
            f"{os.fspath(folder)} is no finished stage folder (it has no {MANIFEST_NAME}): run the "
            "stage that makes it first, or point the input at another folder"
        )
    return json.loads(path.read_text())


class MissingInputError(ValueError):
    """What an earlier stage is to make is not there."""


def input_digest(path: str | os.PathLike[str]) -> str:
    """Returns what identifies an input: a stage folder's manifest, or a file's bytes.

    Raises:
      ValueError: the path is neither a file nor a committed stage folder.
    """
    path = Path(path)
    if path.is_dir():
        return read_manifest(path)["content"]
    if not path.is_file():
        raise MissingInputError(f"input {path} does not exist")
    return file_digest(path)


@dataclasses.dataclass
class Writer:
    """The temporary folder of a stage in progress and the counts for its manifest."""

    folder: Path
    counts: dict[str, Any] = dataclasses.field(default_factory=dict)


class Artifact:
    """One stage's output folder, with the settings and inputs that determine it.

    Args:
      folder: where the finished output lies.
      stage: name of the stage, for messages and the manifest.
      settings: plain values and dataclasses; everything that changes the output.
      inputs: name to path or paths: files, or the folders of earlier stages.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        stage: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Any] | None = None,
    ):
        self.folder = Path(folder)
        self.stage = stage
        self._settings = _plain(settings)
        self._inputs: dict[str, list[str]] = {}
        for name, paths in (inputs or {}).items():
            many = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
            self._inputs[name] = [input_digest(path) for path in many]
        text = json.dumps([_FORMAT, stage, self._settings, self._inputs], sort_keys=True)
        self.key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def manifest(self) -> dict[str, Any]:
        """Returns the manifest of the finished folder."""
        return read_manifest(self.folder)

    def is_current(self) -> bool:
        """Whether the folder was made by these settings and inputs and is all there."""
        if not (self.folder / MANIFEST_NAME).is_file():
            return False
        manifest = self.manifest()
        return manifest["key"] == self.key and all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size == entry["bytes"]
            for name, entry in manifest["outputs"].items()
        )

    @contextlib.contextmanager
    def write(self, attempt: str = "") -> Iterator[Writer]:
        """Yields a `Writer`; on success its folder replaces the output folder.

        On an exception the temporary folder is removed and the old output stays as it was.

        Args:
          attempt: keeps apart the temporary folders of processes that may write the same output at
            a time. One without a name takes over what an earlier one left when it was killed.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.folder.with_name(f".{self.folder.name}{attempt}.partial")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        writer, start_secs = Writer(temporary), time.monotonic()
        try:
            yield writer
            self._seal(writer, time.monotonic() - start_secs)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._swap_in(temporary)

    def _seal(self, writer: Writer, wall_secs: float) -> None:
        outputs = {
            path.relative_to(writer.folder).as_posix(): {
                "bytes": path.stat().st_size,
                "blake2b": file_digest(path),
            }
            for path in sorted(writer.folder.rglob("*"))
            if path.is_file()
        }
        content = hashlib.blake2b(json.dumps(outputs, sort_keys=True).encode(), digest_size=16)
        manifest = {
            "format": _FORMAT,
            "stage": self.stage,
            "key": self.key,
            "content": content.hexdigest(),
            "settings": self._settings,
            "inputs": self._inputs,
            "counts": writer.counts,
            "outputs": outputs,
            "wall_secs": round(wall_secs, 3),
        }
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        (writer.folder / MANIFEST_NAME).write_text(text)

    def _swap_in(self, temporary: Path) -> None:
        """Renames the finished folder into place; a kill between the renames redoes the stage."""
        old = self.folder.with_name(f".{self.folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        temporary.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)
