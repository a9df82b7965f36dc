"""The stream of training batches, addressed by row number and the same for any number of hosts.

Each row of the global stream belongs to one component of the mixture; the component's examples
come in a seeded order, a window of them at a time is packed into rows, and the rows of a window
come in a seeded order too. So where a stream stands is one row number for the mixture and two
integers for each component, and a host reads the tokens of its own rows only. No JAX, no
TensorFlow: `prefetch` overlaps this with the step, training places the arrays on devices.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from t5x_style.data import packing
from t5x_style.data.order import Order, SequentialOrder, ShuffledOrder, scrambled
from t5x_style.data.token_store import TokenStore

Batch = dict[str, np.ndarray]

_MAX_BLOCK_ROWS = 4096
_ALL_ROWS = 1 << 62


@dataclasses.dataclass(frozen=True)
class Component:
    """One part of a mixture.

    Attributes:
      store: folder of the token store.
      rate: weight of the component; shares of rows, so of tokens, are rates over their sum.
      order: makes the order of the examples from their numbers, int64[n], and a seed.
      min_tokens, max_tokens: keep only examples with at least and at most this many predictions
        (a document's tokens and its end-of-text token). The long phase of arXiv 2403.17297,
        section 3.3, is two components of one store: from the short context up, and up to it.
    """

    store: str
    rate: float = 1.0
    order: Callable[[np.ndarray, int], Order] = ShuffledOrder
    min_tokens: int | None = None
    max_tokens: int | None = None


class Batches:
    """An endless iterator of packed batches for one host, with a small exact state.

    Each batch is a dict of arrays [rows, length]: inputs, targets, positions, segment_ids,
    target_bytes (int32) and loss_weights (float32); see `packing.empty_rows`. Every prediction of
    every example of a component comes exactly once in an epoch of that component.

    Args:
      components: the mixture.
      length: predictions in a row (the context).
      batch_size: rows in the global batch.
      seed: any integer; another seed, another order.
      rows: this host's rows of the global batch, None for all; they do not change the stream.
      window_examples: examples packed together; more fills rows better and mixes more.

    Raises:
      ValueError: a setting makes no sense, a store is missing, or a component has no example.
    """

    def __init__(
        self,
        components: Sequence[Component],
        length: int,
        batch_size: int,
        seed: int,
        rows: range | None = None,
        window_examples: int = 4096,
    ):
        if not components:
            raise ValueError("set Batches.components: a mixture needs at least one Component")
        if window_examples < 1:
            raise ValueError(f"Batches.window_examples = {window_examples} is below 1")
        self._own = own_rows_of(length, batch_size, rows)
        self.length, self.batch_size = length, batch_size
        stores = [TokenStore.open(component.store) for component in components]
        for store in stores[1:]:
            if store.vocabulary_fingerprint != stores[0].vocabulary_fingerprint:
                raise ValueError(
                    f"{store.folder} and {stores[0].folder} were tokenised with different "
                    "vocabularies: run the tasks stage again for one of the components"
                )
        self._cursors = [
            _Cursor(component, store, length, seed, number, window_examples)
            for number, (component, store) in enumerate(zip(components, stores, strict=True))
        ]
        self._shares = _Shares([component.rate for component in components], seed)
        self._next_row = 0
        self._stream = {
            "components": [
                {
                    "content": store.content,
                    "rate": float(component.rate),
                    "order": getattr(component.order, "__name__", type(component.order).__name__),
                    "min_tokens": component.min_tokens,
                    "max_tokens": component.max_tokens,
                }
                for component, store in zip(components, stores, strict=True)
            ],
            "length": length,
            "batch_size": batch_size,
            "seed": seed,
            "window_examples": window_examples,
        }

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        owners = self._shares.components(self._next_row, self.batch_size)
        batch = packing.empty_rows(self._own.stop - self._own.start, self.length)
        for number, cursor in enumerate(self._cursors):
            at = np.flatnonzero(owners == number)
            for plan, rows in cursor.take(len(at)):
                here, at = at[: len(rows)], at[len(rows) :]
                own = (here >= self._own.start) & (here < self._own.stop)
                packing.write_rows(
                    batch, here[own] - self._own.start, cursor.store, plan, rows[own]
                )
        self._next_row += self.batch_size
        return batch

    def state(self) -> dict[str, Any]:
        """Returns where the stream stands, as plain JSON values; the same on every host."""
        return {
            "next_row": self._next_row,
            "cursors": [[cursor.place, cursor.row] for cursor in self._cursors],
            "stream": self._stream,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues where another stream of the same settings stood, on any number of hosts.

        Raises:
          ValueError: the state is of another stream; names what differs.
        """
        differ = [
            f"{name} was {state['stream'].get(name)!r}, is {value!r}"
            for name, value in self._stream.items()
            if state["stream"].get(name) != value
        ]
        if differ:
            raise ValueError(
                f"the saved position is of another stream of batches: {'; '.join(differ)}. Set "
                "Batches and its components as they were, or start a new run folder"
            )
        self._next_row = state["next_row"]
        for cursor, (place, row) in zip(self._cursors, state["cursors"], strict=True):
            cursor.move_to(place, row)


def validation_batches(
    store: str, length: int, batch_size: int, rows: range | None = None
) -> Iterator[Batch]:
    """Yields every prediction of a store exactly once, packed, in an order that never changes.

    Args:
      store: folder of the token store.
      length, batch_size, rows: as in `Batches`.

    Yields:
      Batches as `Batches` makes them; the last one is padded with empty rows, and every host gets
      the same number.

    Raises:
      ValueError: the store is missing or empty, or a size makes no sense.
    """
    own = own_rows_of(length, batch_size, rows)
    opened = TokenStore.open(store)
    component = Component(store, order=SequentialOrder)
    cursor = _Cursor(component, opened, length, seed=0, number=0, window_examples=4096)
    return _one_pass(cursor, length, batch_size, own)


def epoch_steps(
    components: Sequence[Component],
    length: int,
    batch_size: int,
    seed: int,
    window_examples: int = 4096,
    epochs: float = 1.0,
) -> int:
    """Returns the batches after which the first component has come round so often.

    The last of these batches may have some rows of the next epoch.

    Args:
      components, length, batch_size, seed, window_examples: as `Batches` has them; other ones
        pack into other rows.
      epochs: how often each example of the first component is to come.

    Raises:
      ValueError: a setting makes no sense, or the first component's store is missing or empty.
    """
    if not components or epochs <= 0:
        raise ValueError(
            f"batches.epoch_steps.epochs = {epochs} must be above 0, and there must be components"
        )
    own_rows_of(length, batch_size, None)
    first = components[0]
    cursor = _Cursor(first, TokenStore.open(first.store), length, seed, 0, window_examples)
    num_rows = 0
    while cursor.place < epochs * cursor.num_examples:
        num_rows += len(cursor.take_from_window(_ALL_ROWS)[1])
    shares = _Shares([component.rate for component in components], seed)
    return math.ceil(shares.end_row(0, num_rows) / batch_size)


def _one_pass(cursor: "_Cursor", length: int, batch_size: int, own: range) -> Iterator[Batch]:
    batch, filled = packing.empty_rows(len(own), length), 0
    while cursor.place < cursor.num_examples:
        plan, rows = cursor.take_from_window(batch_size - filled)
        at = np.arange(filled, filled + len(rows))
        mine = (at >= own.start) & (at < own.stop)
        packing.write_rows(batch, at[mine] - own.start, cursor.store, plan, rows[mine])
        filled += len(rows)
        if filled == batch_size:
            yield batch
            batch, filled = packing.empty_rows(len(own), length), 0
    if filled:
        yield batch


class _Cursor:
    """Where one component stands: `row` rows into the window that starts at `place`."""

    def __init__(
        self,
        component: Component,
        store: TokenStore,
        length: int,
        seed: int,
        number: int,
        window_examples: int,
    ):
        num_targets = store.lengths - 1
        if not (num_targets >= 1).any():
            raise ValueError(
                f"{component.store} holds no text: give its task more (TextTask.train_files, "
                "TextTask.validation_share), or point Component.store at another store"
            )
        keep = num_targets >= max(1, component.min_tokens or 1)
        if component.max_tokens is not None:
            keep &= num_targets <= component.max_tokens
        examples = np.flatnonzero(keep)
        if not len(examples):
            raise ValueError(
                f"no example of {component.store} has between "
                f"Component.min_tokens = {component.min_tokens} and "
                f"Component.max_tokens = {component.max_tokens} tokens; its {store.num_examples} "
                f"have {num_targets.min()} to {num_targets.max()}: widen these bounds"
            )
        self.store, self.num_examples = store, len(examples)
        self._order = component.order(examples, seed + number)
        self._length, self._key = length, (seed, number)
        self._window_examples = window_examples
        self.move_to(0, 0)

    def move_to(self, place: int, row: int) -> None:
        self.place, self.row = place, row
        self._plan: packing.Plan | None = None

    def take(self, num_rows: int) -> Iterator[tuple[packing.Plan, np.ndarray]]:
        """Yields the next rows, window by window."""
        while num_rows:
            plan, rows = self.take_from_window(num_rows)
            num_rows -= len(rows)
            yield plan, rows

    def take_from_window(self, at_most: int) -> tuple[packing.Plan, np.ndarray]:
        """Returns the plan of the current window and the next rows of it, at least one."""
        plan = self._plan or self._open_window()
        rows = self._rows[self.row : self.row + at_most]
        self.row += len(rows)
        if self.row >= plan.num_rows:
            self.move_to(self._next_place, 0)
        return plan, rows

    def _open_window(self) -> packing.Plan:
        stop = self.place + self._window_examples
        boundary = self._order.next_boundary(self.place)
        at_end = boundary is not None and boundary <= stop
        places = np.arange(self.place, boundary if at_end else stop)
        examples = self._order.at(places)
        starts = self.store.offsets[examples]
        num_targets = self.store.offsets[examples + 1] - starts - 1
        if not at_end:
            size = packing.window_size(num_targets, self._length)
            starts, num_targets = starts[:size], num_targets[:size]
        self._next_place = self.place + len(starts)
        self._plan = packing.plan(starts, num_targets, self._length)
        # Best fit makes long pieces' rows first: without this, every window would be a curriculum.
        rows = np.arange(self._plan.num_rows)
        self._rows = np.argsort(scrambled(rows, (*self._key, self.place)), kind="stable")
        return self._plan


class _Shares:
    """Which component each row of the global stream belongs to.

    Rows come in blocks of the smallest size that gives every component a whole number of rows (at
    most 4096; beyond that, by largest remainder), each block in its own seeded order. So shares
    are exact over every block.
    """

    def __init__(self, rates: Sequence[float], seed: int):
        for number, rate in enumerate(rates):
            if not (math.isfinite(rate) and rate > 0):
                raise ValueError(f"Component.rate = {rate} of component {number} is not above 0")
        exact = [Fraction(str(float(rate))) for rate in rates]
        shares = [rate / sum(exact) for rate in exact]
        self._size = math.lcm(*(share.denominator for share in shares))
        if self._size > _MAX_BLOCK_ROWS:
            self._size = _MAX_BLOCK_ROWS
        ideal = [share * self._size for share in shares]
        counts = [math.floor(value) for value in ideal]
        by_remainder = sorted(range(len(ideal)), key=lambda i: (counts[i] - ideal[i], i))
        for number in by_remainder[: self._size - sum(counts)]:
            counts[number] += 1
        if not all(counts):
            raise ValueError(
                f"Component.rate = {rates[counts.index(0)]} is less than one row in {self._size} "
                "of the mixture: raise it, or leave the component out"
            )
        self._slots = np.repeat(np.arange(len(rates)), counts)
        self._seed = seed

    def components(self, first_row: int, num_rows: int) -> np.ndarray:
        """Returns the component, int64[num_rows], of each row from `first_row` on."""
        first_block = first_row // self._size
        end_block = -(-(first_row + num_rows) // self._size)
        rows = np.arange(first_block * self._size, end_block * self._size)
        by_block = scrambled(rows, (self._seed,)).reshape(-1, self._size)
        owners = self._slots[np.argsort(by_block, axis=1, kind="stable")].reshape(-1)
        return owners[first_row - rows[0] :][:num_rows]

    def end_row(self, number: int, num_rows: int) -> int:
        """Returns the row of the global stream after so many rows, at least 1, of a component."""
        blocks, within = divmod(num_rows - 1, int((self._slots == number).sum()))
        owners = self.components(blocks * self._size, self._size)
        return blocks * self._size + int(np.flatnonzero(owners == number)[within]) + 1


def own_rows_of(length: int, batch_size: int, rows: range | None) -> range:
    """Returns this host's rows of the global batch."""
    if length < 1 or batch_size < 1:
        raise ValueError(f"length = {length} and batch_size = {batch_size} must be at least 1")
    own = range(batch_size) if rows is None else rows
    if not 0 <= own.start < own.stop <= batch_size or own.step != 1:
        raise ValueError(f"rows = {own} are not some of the {batch_size} rows of a batch")
    return own
