"""Batches of labelled texts for a classifier: windows of texts packed into rows of one length.

One static shape, whatever the texts' lengths: short texts share rows as segments. Rows are packed
once; each epoch takes them in an order of its own, so where a stream stands is one row number.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from t5x_style.data import packing
from t5x_style.data.batches import Batch, own_rows_of
from t5x_style.data.order import ShuffledOrder, permuted
from t5x_style.data.vocabulary import Vocabulary
from t5x_style.text_windows import WindowSettings

# Windows that are packed together: enough to fill rows, few enough that rows are mixed.
_PACKED_TOGETHER = 1024
_NAMES = ("inputs", "positions", "segment_ids", "labels")


@dataclasses.dataclass(frozen=True)
class LabelledWindows:
    """Windows of texts. W windows.

    Attributes:
      tokens: int32, the ids of all windows, one after another.
      bounds: int64[W + 1]; window w is tokens[bounds[w] : bounds[w + 1]].
      labels: int32[W], 0 or 1.
      weights: float32[W].
    """

    tokens: np.ndarray
    bounds: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    @property
    def content(self) -> str:
        """Hex digest of all of it."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.tokens, self.bounds, self.labels, self.weights):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def labelled_windows(
    texts: Sequence[str],
    labels: Sequence[bool],
    vocabulary: Vocabulary,
    settings: WindowSettings,
) -> LabelledWindows:
    """Cuts texts into windows, weighted so that both labels, and all texts of one, count alike.

    A text's weight, shared among its windows, is D / (2 n) where n of the D texts have its label.

    Args:
      texts: D texts.
      labels: of each.
      vocabulary: what encodes them.
      settings: how they are cut.

    Raises:
      ValueError: there is no text, or a text is no Unicode.
    """
    if not texts:
        raise ValueError("there are no labelled texts to make batches of")
    is_true = np.asarray(labels, bool)
    num_of_label = np.array([(~is_true).sum(), is_true.sum()])
    pieces, owners, shares = [], [], []
    for number, text in enumerate(texts):
        windows = settings.cut(vocabulary.encode(text), vocabulary.bos_id)
        pieces += windows
        owners += [number] * len(windows)
        shares += [1 / len(windows)] * len(windows)
    of_windows = is_true[owners].astype(np.int32)
    bounds = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([len(piece) for piece in pieces], out=bounds[1:])
    return LabelledWindows(
        tokens=np.fromiter((i for piece in pieces for i in piece), np.int32, int(bounds[-1])),
        bounds=bounds,
        labels=of_windows,
        weights=(len(texts) / 2 / num_of_label[of_windows] * shares).astype(np.float32),
    )


class LabelledBatches:
    """An endless iterator of packed batches for one host, with a small exact state.

    Each batch is a dict of arrays [rows, length]: inputs, positions, segment_ids, labels (int32)
    and loss_weights (float32). Label and weight of a window stand at its first token.

    Args:
      windows: what to train on.
      length: tokens in a row, at least those of the longest window.
      batch_size: rows in the global batch.
      seed: any integer; another seed, another order.
      rows: this host's rows of the global batch, None for all; they do not change the stream.

    Raises:
      ValueError: a size makes no sense, or a window is longer than a row.
    """

    def __init__(
        self,
        windows: LabelledWindows,
        length: int,
        batch_size: int,
        seed: int,
        rows: range | None = None,
    ):
        self._own = own_rows_of(length, batch_size, rows)
        self._rows = _Rows(windows, length, seed)
        self._order = ShuffledOrder(np.arange(self._rows.num_rows), seed)
        self._batch_size = batch_size
        self._next_row = 0
        self._stream = {
            "content": windows.content,
            "length": length,
            "batch_size": batch_size,
            "seed": seed,
        }

    @property
    def rows_per_epoch(self) -> int:
        """Rows that hold every window once."""
        return self._rows.num_rows

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        places = self._next_row + np.arange(self._own.start, self._own.stop)
        self._next_row += self._batch_size
        return self._rows.batch(self._order.at(places), len(places))

    def state(self) -> dict[str, Any]:
        """Returns where the stream stands, as plain JSON values; the same on every host."""
        return {"next_row": self._next_row, "stream": self._stream}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues where another stream of the same settings stood, on any number of hosts.

        Raises:
          ValueError: the state is of another stream.
        """
        if state["stream"] != self._stream:
            raise ValueError(
                f"the saved position is of other labelled texts or batches: {state['stream']} "
                f"there, {self._stream} here. Set them as they were, or start a new run folder"
            )
        self._next_row = state["next_row"]


def one_pass(
    windows: LabelledWindows, length: int, batch_size: int, rows: range | None = None
) -> Iterator[Batch]:
    """Yields every window exactly once; the last batch is padded with empty rows.

    Args:
      windows, length, batch_size, rows: as in `LabelledBatches`.

    Raises:
      ValueError: as there.
    """
    own = own_rows_of(length, batch_size, rows)
    packed = _Rows(windows, length, seed=0)
    for start in range(0, packed.num_rows, batch_size):
        here = np.arange(start, min(start + batch_size, packed.num_rows))
        yield packed.batch(here[own.start : own.stop], len(own))


class _Rows:
    """Windows packed into rows."""

    def __init__(self, windows: LabelledWindows, length: int, seed: int):
        sizes = np.diff(windows.bounds)
        if sizes.max() > length:
            raise ValueError(
                f"a window of {sizes.max()} tokens does not fit into a row of {length}: set "
                "text_windows.WindowSettings.length_tokens to at most the row's"
            )
        self._windows, self._length = windows, length
        mixed = permuted(np.arange(len(sizes)), len(sizes), (seed, -1))
        self._of_row: list[np.ndarray] = []
        for start in range(0, len(mixed), _PACKED_TOGETHER):
            group = mixed[start : start + _PACKED_TOGETHER]
            # Each window is one piece, named by its place in the group.
            plan = packing.plan(np.arange(len(group)), sizes[group], length)
            self._of_row += np.split(group[plan.starts], plan.row_splits[1:-1])
        self.num_rows = len(self._of_row)

    def batch(self, numbers: np.ndarray, num_rows: int) -> Batch:
        """Returns the rows of these numbers, and empty ones up to `num_rows`."""
        shape = (num_rows, self._length)
        batch: Batch = {name: np.zeros(shape, np.int32) for name in _NAMES}
        batch["loss_weights"] = np.zeros(shape, np.float32)
        windows = self._windows
        for row, number in enumerate(numbers):
            at = 0
            for segment, window in enumerate(self._of_row[number], start=1):
                ids = windows.tokens[windows.bounds[window] : windows.bounds[window + 1]]
                here = slice(at, at + len(ids))
                batch["inputs"][row, here] = ids
                batch["positions"][row, here] = np.arange(len(ids))
                batch["segment_ids"][row, here] = segment
                batch["labels"][row, at] = windows.labels[window]
                batch["loss_weights"][row, at] = windows.weights[window]
                at += len(ids)
        return batch
