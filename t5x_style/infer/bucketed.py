"""One number of each row of ids, in batches of few shapes, over all devices.

Rows go by length into buckets (`sampler.bucket`); a batch of one bucket always has the same number
of rows, filled up with padding, and rows share nothing. So there are few programs, and a row's
number does not depend on what it comes with, but for the rounding of the last bits on some
platforms. What the number is, is handed in.

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
      batch_tokens: tokens of a batch on each device, at least those of one row; a batch is always
        of this size, so few rows at a time cost as much as many.
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
        longest: int | None = None,
        axis_rules: rules.Rules | None = None,
    ):
        self._numbers, self._mesh = numbers, mesh
        self._batch_tokens, self._longest = batch_tokens, longest
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

    def _num_rows(self, length: int) -> int:
        on_device = max(1, self._batch_tokens // length)
        axes = [axis for axis in self._axis_rules["act_batch"] if axis in self._mesh.shape]
        return on_device * math.prod(self._mesh.shape[axis] for axis in axes)

    def _run(self, rows: Sequence[Sequence[int]], places: Sequence[int], length: int) -> jax.Array:
        shape = (self._num_rows(length), length)
        self._shapes.add(shape)
        tokens_BT, segment_ids_BT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for row, place in enumerate(places):
            tokens_BT[row, : len(rows[place])] = rows[place]
            segment_ids_BT[row, : len(rows[place])] = 1
        sharding = rules.sharding_of(("act_batch", "act_length"), shape, self._mesh)
        return self._numbers(*jax.device_put((tokens_BT, segment_ids_BT), sharding))
