"""One number of each row of ids, in batches of few shapes, over all devices.

Rows go by length into buckets (`sampler.bucket`); a batch of one bucket always has the same number
of rows, or one of a few numbers, filled up with padding, and rows share nothing. So there are few
programs, and a row's number does not depend on what it comes with, but for the rounding of the last
bits on some platforms. What the number is, is handed in.

Legend: B batch, T length.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from t5x_style.infer.pool import bucket
from t5x_style.parallel import rules

# From tokens and segment ids, int32 [B, T] (1, or 0 for padding), to a number of each row, [B].
Numbers = Callable[[jax.Array, jax.Array], jax.Array]


class BucketedRows:
    """Runs a compiled function over rows of ids.

    Args:
      numbers: the function.
      mesh: the devices, each with other rows.
      batch_tokens: tokens of a batch on each device, at least those of one row.
      has_small_batches: whether fewer rows may be a batch of a half of this size, of a quarter and
        so on, each a program of its own; else few rows at a time cost as much as many.
      longest: no row is longer than this; None for any length.
      axis_rules: how rows, and what the function reads, are laid over the devices; None for the
        rules in use.
    """

    def __init__(
        self,
        numbers: Numbers,
        mesh: Mesh,
        *,
        batch_tokens: int,
        has_small_batches: bool = False,
        longest: int | None = None,
        axis_rules: rules.Rules | None = None,
    ):
        self._numbers, self._mesh = numbers, mesh
        self._batch_tokens, self._longest = batch_tokens, longest
        self._has_small_batches = has_small_batches
        self._axis_rules = rules.in_use() if axis_rules is None else axis_rules
        self._shapes: set[tuple[int, int]] = set()

    @property
    def num_compilations(self) -> int:
        """How many shapes of batches there were so far, each a program."""
        return len(self._shapes)

    def numbers(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns float64 [N], the number of each row."""
        found = np.zeros(len(rows), np.float64)
        pending: tuple[Sequence[int], jax.Array] | None = None
        with jax.set_mesh(self._mesh), rules.axis_rules(self._axis_rules):
            for batch in [*self._batches(rows), None]:
                # The devices work on a batch while the host reads what came of the one before.
                running = None if batch is None else (batch[0], self._run(rows, *batch))
                if pending is not None:
                    chosen, numbers_B = pending
                    found[list(chosen)] = np.asarray(numbers_B, np.float64)[: len(chosen)]
                pending = running
        return found

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], int]]:
        """Yields the places of rows to run together, and the length that they are filled up to."""
        buckets: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            length = bucket(len(row))
            if self._longest is not None:
                length = min(length, self._longest)
            buckets.setdefault(length, []).append(place)
        for length, places in sorted(buckets.items()):
            num_rows = self._num_rows(length)
            for start in range(0, len(places), num_rows):
                yield places[start : start + num_rows], length

    def _num_rows(self, length: int, num_places: int | None = None) -> int:
        """Returns the rows of a batch, the largest or, for so many places, a small one."""
        most = batch_rows(self._batch_tokens, length, self._mesh)
        if num_places is None or not self._has_small_batches:
            return most
        parts = batch_rows(1, length, self._mesh)
        return min(most, parts * (1 << (-(-num_places // parts) - 1).bit_length()))

    def _run(self, rows: Sequence[Sequence[int]], places: Sequence[int], length: int) -> jax.Array:
        shape = (self._num_rows(length, len(places)), length)
        self._shapes.add(shape)
        tokens_BT, segment_ids_BT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for row, place in enumerate(places):
            tokens_BT[row, : len(rows[place])] = rows[place]
            segment_ids_BT[row, : len(rows[place])] = 1
        sharding = rules.sharding_of(("act_batch", "act_length"), shape, self._mesh)
        return self._numbers(*jax.device_put((tokens_BT, segment_ids_BT), sharding))


def batch_rows(batch_tokens: int, length: int, mesh: Mesh) -> int:
    """Returns the rows of a batch under the rules in use.

    Args:
      batch_tokens: tokens on each device, at least those of one row.
      length: tokens of a row.
      mesh: the devices.
    """
    axes = [axis for axis in rules.in_use()["act_batch"] if axis in mesh.shape]
    return max(1, batch_tokens // length) * math.prod(mesh.shape[axis] for axis in axes)
