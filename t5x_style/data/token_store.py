"""Tokenised examples in a folder of plain files, read through memory maps.

This is the door between seqio, which makes examples, and training, which addresses them by number:
reading a store needs NumPy only. An example is [bos, t1 .. tn, eos]; what is fed and what is
predicted are its ids without the last and without the first. Order, packing and mixing are made
on the fly elsewhere, so one store serves every context length.

    tokens.bin       ids of all examples one after another, uint16 or int32, little endian
    offsets.npy      int64[num_examples + 1], where each example starts in tokens.bin
    loss_mask.bin    optional uint8 for each id: 1 where predicting it counts
    token_bytes.npy  int32[vocab_size], UTF-8 bytes of text each id stands for
    store.json       format, sizes, vocabulary, and a digest of the files above
"""

import array
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_style.artifacts import MissingInputError
from t5x_style.data.vocabulary import Vocabulary

_FORMAT = 1
_TOKENS, _OFFSETS, _MASK = "tokens.bin", "offsets.npy", "loss_mask.bin"
_TOKEN_BYTES, _INDEX = "token_bytes.npy", "store.json"


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A finished store; arrays are memory maps and must not be written to.

    Attributes:
      folder: where it lies.
      tokens: uint16 or int32[num_tokens], the ids of all examples.
      offsets: int64[num_examples + 1], so that example i is tokens[offsets[i]:offsets[i + 1]].
      loss_mask: uint8[num_tokens] or None where every prediction counts.
      token_bytes: int32[vocab_size].
      index: the contents of store.json.
    """

    folder: Path
    tokens: np.ndarray
    offsets: np.ndarray
    loss_mask: np.ndarray | None
    token_bytes: np.ndarray
    index: dict[str, Any]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "TokenStore":
        """Opens a store.

        Raises:
          ValueError: the folder holds none, one of another format, or a damaged one.
        """
        folder = Path(folder)
        if not (folder / _INDEX).is_file():
            raise MissingInputError(
                f"there is no token store in {folder} (no {_INDEX}): run the tasks stage first, or "
                "point Component.store at <tasks.output_dir>/<task>/<split>"
            )
        index = json.loads((folder / _INDEX).read_text())
        if index.get("format") != _FORMAT:
            raise ValueError(
                f"{folder} holds a token store of format {index.get('format')}, this code reads "
                f"{_FORMAT}: run the tasks stage again"
            )
        num_tokens, dtype = index["num_tokens"], np.dtype(index["dtype"])
        offsets = np.asarray(np.load(folder / _OFFSETS, mmap_mode="r"))
        sizes = {_TOKENS: num_tokens * dtype.itemsize}
        if index["has_loss_mask"]:
            sizes[_MASK] = num_tokens
        for name, num_bytes in sizes.items():
            actual = (folder / name).stat().st_size if (folder / name).is_file() else None
            if actual != num_bytes:
                raise ValueError(
                    f"{folder / name} has {actual} bytes where {_INDEX} says {num_bytes}: the "
                    "token store is damaged, delete it and run the tasks stage again"
                )
        if len(offsets) != index["num_examples"] + 1 or offsets[-1] != num_tokens:
            raise ValueError(
                f"{folder / _OFFSETS} does not fit {_INDEX}: the token store is damaged, delete it "
                "and run the tasks stage again"
            )
        return cls(
            folder=folder,
            tokens=_map(folder / _TOKENS, dtype, num_tokens),
            offsets=offsets,
            loss_mask=_map(folder / _MASK, np.uint8, num_tokens) if _MASK in sizes else None,
            token_bytes=np.load(folder / _TOKEN_BYTES),
            index=index,
        )

    @property
    def num_examples(self) -> int:
        return self.index["num_examples"]

    @property
    def num_tokens(self) -> int:
        return self.index["num_tokens"]

    @property
    def vocab_size(self) -> int:
        return self.index["vocab_size"]

    @property
    def vocabulary_fingerprint(self) -> str:
        return self.index["vocabulary"]

    @property
    def content(self) -> str:
        """Hex digest of ids, offsets and loss mask."""
        return self.index["content"]

    @property
    def lengths(self) -> np.ndarray:
        """int64[num_examples], ids in each example, bos and eos included."""
        return np.diff(self.offsets)

    def example(self, index: int) -> np.ndarray:
        """Returns the ids of an example, int32[length]."""
        if not 0 <= index < self.num_examples:
            raise ValueError(f"example {index} of {self.folder}, which has {self.num_examples}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]].astype(np.int32)


class TokenStoreWriter:
    """Writes a store into a folder; use as a context manager, the store is whole on exit.

    Two writers that are given the same examples write the same bytes.

    Args:
      folder: made if it does not exist.
      vocabulary: gives the id range, the bytes of each id and the fingerprint.
      task, split: recorded in store.json.
      with_loss_mask: whether each example brings a loss mask.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        vocabulary: Vocabulary,
        *,
        task: str,
        split: str,
        with_loss_mask: bool = False,
    ):
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._vocabulary = vocabulary
        self._index = {"task": task, "split": split, "has_loss_mask": with_loss_mask}
        self._dtype = np.dtype("<u2" if vocabulary.vocab_size <= 1 << 16 else "<i4")
        self._digest = hashlib.blake2b(digest_size=16)
        self._offsets = array.array("q", [0])
        # Closed in __exit__.
        self._tokens = open(self._folder / _TOKENS, "wb")  # noqa: SIM115
        self._mask = open(self._folder / _MASK, "wb") if with_loss_mask else None  # noqa: SIM115

    def __enter__(self) -> "TokenStoreWriter":
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        self._tokens.close()
        if self._mask is not None:
            self._mask.close()
        if error_type is None:
            self._finish()

    def add(
        self, ids: Sequence[int] | np.ndarray, loss_mask: Sequence[int] | np.ndarray | None = None
    ) -> None:
        """Appends an example.

        Args:
          ids: integers in [0, vocab_size), bos and eos included.
          loss_mask: for each id, whether predicting it counts; required if, and only if, the
            writer was opened with one.

        Raises:
          ValueError: an id outside the vocabulary, or a mask that is missing or does not fit.
        """
        ids = np.asarray(ids)
        number = len(self._offsets) - 1
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise ValueError(f"example {number} is no list of ids: {ids.dtype}{ids.shape}")
        if ids.size and not (ids.min() >= 0 and ids.max() < self._vocabulary.vocab_size):
            raise ValueError(
                f"example {number} of {self._index['task']}/{self._index['split']} holds ids "
                f"{ids.min()}..{ids.max()}, the vocabulary has [0, {self._vocabulary.vocab_size})"
            )
        if (loss_mask is None) != (self._mask is None):
            raise ValueError(
                f"example {number}: a store has a loss mask for every example or for none"
            )
        data = ids.astype(self._dtype).tobytes()
        self._tokens.write(data)
        self._digest.update(data)
        if self._mask is not None:
            mask = np.asarray(loss_mask).astype(bool).astype(np.uint8)
            if mask.shape != ids.shape:
                raise ValueError(f"example {number}: {len(ids)} ids, a loss mask of {mask.shape}")
            self._mask.write(mask.tobytes())
            self._digest.update(mask.tobytes())
        self._offsets.append(self._offsets[-1] + len(ids))

    @property
    def num_examples(self) -> int:
        return len(self._offsets) - 1

    @property
    def num_tokens(self) -> int:
        return self._offsets[-1]

    def _finish(self) -> None:
        offsets = np.frombuffer(self._offsets, np.int64)
        np.save(self._folder / _OFFSETS, offsets)
        np.save(self._folder / _TOKEN_BYTES, self._vocabulary.token_bytes)
        self._digest.update(offsets.astype("<i8").tobytes())
        self._index |= {
            "format": _FORMAT,
            "dtype": self._dtype.str,
            "num_examples": self.num_examples,
            "num_tokens": self.num_tokens,
            "vocab_size": self._vocabulary.vocab_size,
            "vocabulary": self._vocabulary.fingerprint,
            "content": self._digest.hexdigest(),
        }
        text = json.dumps(self._index, indent=1, sort_keys=True) + "\n"
        (self._folder / _INDEX).write_text(text)


def _map(path: Path, dtype: Any, size: int) -> np.ndarray:
    if not size:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    # A plain view of the map: slicing the memmap class itself costs microseconds.
    return np.asarray(np.memmap(path, dtype, "r", shape=(size,)))
