"""Safetensors files: written tensor by tensor, read tensor by tensor, never trusted.

The writer knows all shapes before the first byte, so a file's header is written first and the
tensors stream behind it; no more than one tensor need be in memory. The reader takes names and
shapes from the files' headers, refuses paths that leave the folder, and refuses pickles.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
_MAX_INDEX_BYTES = 64 << 20
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLE_HINT = (
    "unpickling runs whatever code the file holds. Convert it where it is trusted: "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
)


def numpy_dtype(name: str) -> np.dtype:
    """Returns the NumPy dtype of a name, bfloat16 included.

    Raises:
      ValueError: weights are not kept in this dtype.
    """
    if name not in _CODES:
        raise ValueError(f"dtype = {name!r}: must be one of {tuple(_CODES)}")
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


class ShardWriter:
    """Writes named tensors, in an order given beforehand, to one or several safetensors files.

    Args:
      folder: an existing folder.
      tensors: name and shape of every tensor, in the order in which they will come.
      dtype: name of the dtype that all are written in.
      max_shard_bytes: a file is ended before it would grow beyond this; a single tensor may.

    Use it as a context manager; leaving it writes the index, if there are several files.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Sequence[tuple[str, tuple[int, ...]]],
        *,
        dtype: str,
        max_shard_bytes: int,
    ):
        if max_shard_bytes < 1:
            raise ValueError(f"max_shard_bytes = {max_shard_bytes}: must be at least 1")
        self._folder = folder
        self._dtype = numpy_dtype(dtype)
        self._code = _CODES[dtype]
        self._shapes = dict(tensors)
        self._shards = _planned_shards(tensors, self._dtype.itemsize, max_shard_bytes)
        self._waiting = iter(self._shards.items())
        self._in_this_shard: list[str] = []
        self._file: Any = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None:
            assert not self._in_this_shard, "tensors that were announced were not written"
            if len(self._shards) > 1:
                self._write_index()

    def write(self, name: str, tensor: np.ndarray) -> None:
        """Appends the next tensor, which must be the one that was announced."""
        if not self._in_this_shard:
            self._open_next()
        assert name == self._in_this_shard.pop(0), f"{name} is not the next tensor announced"
        assert tensor.shape == self._shapes[name], f"{name} is {tensor.shape}"
        tensor = np.ascontiguousarray(tensor, dtype=self._dtype)
        self._file.write(tensor.reshape(-1).view(np.uint8).data)

    def _open_next(self) -> None:
        if self._file is not None:
            self._file.close()
        file_name, names = next(self._waiting)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for name in names:
            stop = start + _num_bytes(self._shapes[name], self._dtype.itemsize)
            header[name] = {
                "dtype": self._code,
                "shape": list(self._shapes[name]),
                "data_offsets": [start, stop],
            }
            start = stop
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # readers map the data, which must lie aligned
        self._file = (self._folder / file_name).open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)
        self._in_this_shard = list(names)

    def _write_index(self) -> None:
        total = sum(_num_bytes(shape, self._dtype.itemsize) for shape in self._shapes.values())
        weight_map = {name: file for file, names in self._shards.items() for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (self._folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _num_bytes(shape: tuple[int, ...], item_bytes: int) -> int:
    return int(np.prod(shape, dtype=np.int64)) * item_bytes


def _planned_shards(
    tensors: Sequence[tuple[str, tuple[int, ...]]], item_bytes: int, max_shard_bytes: int
) -> dict[str, list[str]]:
    shards: list[list[str]] = []
    room = 0
    for name, shape in tensors:
        num_bytes = _num_bytes(shape, item_bytes)
        if not shards or num_bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= num_bytes
    if len(shards) == 1:
        return {SINGLE_NAME: shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": names
        for number, names in enumerate(shards, start=1)
    }


class ShardReader:
    """The tensors of a folder of safetensors files, by name.

    Attributes:
      shapes: name to shape, from the headers of all files.
      dtypes: name to the format's dtype code, such as "BF16".

    Raises (on construction):
      ValueError: no safetensors files, a damaged file, an index that names a file outside the
        folder or a tensor that is not in its file, or a tensor that is in two files.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        self._open_path: Path | None = None
        self._open_file: Any = None
        weight_map = _read_index(folder)
        for path in _files(folder, weight_map):
            self._read_header(path)
        absent = sorted(set(weight_map or ()) - set(self.shapes))
        if absent:
            raise ValueError(
                f"{folder / INDEX_NAME} lists tensors that their files do not hold: {absent}; "
                "the folder mixes two checkpoints or a download is incomplete"
            )

    def _read_header(self, path: Path) -> None:
        file = self._file(path)
        for name in file.keys():  # noqa: SIM118 - no mapping
            if name in self._files:
                raise ValueError(f"tensor {name} is both in {self._files[name]} and in {path}")
            header = file.get_slice(name)
            self._files[name] = path
            self.shapes[name] = tuple(header.get_shape())
            self.dtypes[name] = header.get_dtype()

    def files(self) -> list[Path]:
        """Returns the files that hold the tensors."""
        return sorted(set(self._files.values()))

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor; only the file that was read last stays mapped."""
        return self._file(self._files[name]).get_tensor(name)

    def _file(self, path: Path) -> Any:
        if path != self._open_path:
            self._open_file = None
            try:
                self._open_file = safetensors.safe_open(path, framework="numpy")
            except (safetensors.SafetensorError, OSError) as error:
                raise ValueError(
                    f"{path} is no safetensors file or is damaged ({error}); fetch it again"
                ) from error
            self._open_path = path
        return self._open_file


def read_json(path: Path) -> Mapping[str, Any]:
    """Returns the object in a JSON file.

    Raises:
      ValueError: the file is absent, too large or no JSON object.
    """
    if not path.is_file():
        raise ValueError(
            f"there is no {path}; what can be read is a Hugging Face repository on disk, with "
            "config.json and safetensors files (hf_import.hf_dir)"
        )
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise ValueError(f"{path} is larger than {_MAX_INDEX_BYTES} bytes and is not read")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a JSON object")
    return content


def _read_index(folder: Path) -> dict[str, str] | None:
    path = folder / INDEX_NAME
    if not path.exists():
        return None
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise ValueError(f"{path} has no weight_map from tensor names to file names")
    return weight_map


def _files(folder: Path, weight_map: Mapping[str, str] | None) -> Iterator[Path]:
    if weight_map is not None:
        names = sorted(set(weight_map.values()))
    elif (folder / SINGLE_NAME).exists():
        names = [SINGLE_NAME]
    else:
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        pickles = [path.name for path in found if path.suffix in _PICKLE_SUFFIXES]
        if pickles:
            raise ValueError(f"{folder} holds {pickles} and no safetensors: {_PICKLE_HINT}")
        raise ValueError(f"{folder} holds neither {SINGLE_NAME} nor {INDEX_NAME}")
    for name in names:
        if name.endswith(_PICKLE_SUFFIXES):
            raise ValueError(f"{folder / INDEX_NAME} names {name!r}: {_PICKLE_HINT}")
        yield _path_inside(folder, name)


def _path_inside(folder: Path, name: str) -> Path:
    """Returns folder / name, which must be a plain file name that leads to a file in the folder.

    The Hub's cache keeps files as links from `snapshots/REVISION` into `blobs` beside `snapshots`;
    of links that leave the folder, only those are followed.
    """
    source = folder / INDEX_NAME
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0:"):
        raise ValueError(f"{source} names {name!r}, which is no plain file name; refused")
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{source} names {name!r}, which is not there; fetch the missing file")
    allowed = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        allowed.append(folder.resolve().parent.parent / "blobs")
    if path.resolve().parent not in allowed:
        raise ValueError(f"{path} is a link to {path.resolve()}, outside the folder; refused")
    return path
