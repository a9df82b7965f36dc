"""Packing: which pieces of which examples share a row, and the arrays of a row.

An example of m ids has m - 1 predictions; it is cut into pieces of at most `length` predictions,
and the remainder is a piece like any other (arXiv 2403.17297, section 3.3: the remainder is also
trained on). Pieces go to rows by best fit, longest first: each into the fullest row that still
takes it. A plan is a few integers for each piece; tokens are only read when a row is written.
"""

import bisect
import dataclasses

import numpy as np

from t5x_style.data.token_store import TokenStore

# A window of examples is closed where its tokens just fill whole rows. A little is left free,
# because pieces do not fit without any gap.
_SLACK_SHARE = 1 / 1024
_MIN_WINDOW_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rows of pieces. P pieces, R rows.

    Attributes:
      starts: int64[P], where each piece's first input lies in the store's tokens; its last
        prediction lies at starts + sizes.
      sizes: int64[P], predictions in each piece, at least 1.
      row_splits: int64[R + 1]; row r holds pieces row_splits[r] to row_splits[r + 1].
    """

    starts: np.ndarray
    sizes: np.ndarray
    row_splits: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.row_splits) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.sizes.sum())


def window_size(num_targets: np.ndarray, length: int) -> int:
    """Returns how many of the examples to pack together, from half of them to all.

    Chooses the number whose predictions come closest to whole rows from below, so that the last
    row of a window is nearly full too, however few rows a window has.

    Args:
      num_targets: int64[n], predictions in each example, n >= 1.
      length: predictions in a row.
    """
    total = np.cumsum(num_targets)
    free = -total % length
    wanted = (total * _SLACK_SHARE).astype(np.int64)
    # Too little room costs a row, so it counts as a whole row of loss.
    loss = np.where(free >= wanted, free, free + length) / np.maximum(total, 1)
    first = int(len(total) * _MIN_WINDOW_SHARE)
    return first + int(np.argmin(loss[first:])) + 1


def plan(starts: np.ndarray, num_targets: np.ndarray, length: int) -> Plan:
    """Cuts examples into pieces and the pieces into rows, best fit, longest first.

    Args:
      starts: int64[n], where each example's ids start in the store.
      num_targets: int64[n], predictions in each example; examples without any take no place.
      length: predictions in a row.

    Returns:
      A plan in which each prediction of each example occurs exactly once.
    """
    num_pieces = -(-num_targets // length)
    owner = np.repeat(np.arange(len(starts)), num_pieces)
    first = np.cumsum(num_pieces) - num_pieces
    skipped = (np.arange(len(owner)) - first[owner]) * length
    piece_starts = starts[owner] + skipped
    sizes = np.minimum(num_targets[owner] - skipped, length)

    order = np.argsort(-sizes, kind="stable")
    rows = _best_fit(sizes[order], length)
    # Stable: within a row the longest piece stays first.
    by_row = np.argsort(rows, kind="stable")
    order = order[by_row]
    num_rows = int(rows.max()) + 1 if len(rows) else 0
    row_splits = np.zeros(num_rows + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=num_rows), out=row_splits[1:])
    return Plan(piece_starts[order], sizes[order], row_splits)


def _best_fit(sizes: np.ndarray, length: int) -> np.ndarray:
    """Returns the row, int64[P], of each piece; sizes must descend."""
    num_full = int(np.searchsorted(-sizes, -length, side="right"))
    rows = list(range(num_full))
    num_rows = num_full
    # Rows with room, ascending by free predictions; the row number rides in the low bits.
    open_rows: list[int] = []
    for size in sizes[num_full:].tolist():
        index = bisect.bisect_left(open_rows, size << 32)
        if index < len(open_rows):
            free, row = open_rows[index] >> 32, open_rows[index] & 0xFFFFFFFF
            del open_rows[index]
        else:
            free, row = length, num_rows
            num_rows += 1
        rows.append(row)
        if free > size:
            bisect.insort(open_rows, (free - size) << 32 | row)
    return np.array(rows, np.int64)


def empty_rows(num_rows: int, length: int) -> dict[str, np.ndarray]:
    """Returns the arrays of rows that hold nothing: what `write_rows` fills.

    Returns:
      inputs, targets, positions, segment_ids, target_bytes: int32[num_rows, length];
      loss_weights: float32[num_rows, length]. Positions count from 0 in each piece; segment ids
      count the pieces of a row from 1, and 0 is padding.
    """
    names = ("inputs", "targets", "positions", "segment_ids", "target_bytes")
    arrays: dict[str, np.ndarray] = {name: np.zeros((num_rows, length), np.int32) for name in names}
    arrays["loss_weights"] = np.zeros((num_rows, length), np.float32)
    return arrays


def write_rows(
    arrays: dict[str, np.ndarray], at: np.ndarray, store: TokenStore, plan: Plan, rows: np.ndarray
) -> None:
    """Writes planned rows into arrays made by `empty_rows`.

    Args:
      arrays: written in place.
      at: int64[k], row numbers in `arrays`.
      store: where the plan's tokens lie.
      plan: what each row holds.
      rows: int64[k], row numbers in the plan.
    """
    count = np.arange(arrays["inputs"].shape[1], dtype=np.int32)
    tokens, mask = store.tokens, store.loss_mask
    for row_out, row in zip(at.tolist(), rows.tolist(), strict=True):
        inputs, targets = arrays["inputs"][row_out], arrays["targets"][row_out]
        positions, segment_ids = arrays["positions"][row_out], arrays["segment_ids"][row_out]
        weights = arrays["loss_weights"][row_out]
        begin, end = plan.row_splits[row : row + 2].tolist()
        starts, sizes = plan.starts[begin:end].tolist(), plan.sizes[begin:end].tolist()
        column = 0
        for segment, (start, size) in enumerate(zip(starts, sizes, strict=True), 1):
            stop = column + size
            inputs[column:stop] = tokens[start : start + size]
            targets[column:stop] = tokens[start + 1 : start + size + 1]
            positions[column:stop] = count[:size]
            segment_ids[column:stop] = segment
            if mask is not None:
                weights[column:stop] = mask[start + 1 : start + size + 1]
            column = stop
        if mask is None:
            weights[:column] = 1.0
        arrays["target_bytes"][row_out, :column] = store.token_bytes[targets[:column]]
