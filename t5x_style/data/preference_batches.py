"""Batches of preferences for a reward model, filled by total length and not by number of pairs.

A batch is rows of one length in which responses lie as segments (arXiv 2403.17297, section 4.2.1:
16,384 tokens in all). Responses to a prompt are in the same batch, so that all their comparisons
can be made; a response that is compared several times is computed once. Where a stream stands is an
epoch and the number of a batch in it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from t5x_style.data.batches import Batch, own_rows_of
from t5x_style.data.order import permuted
from t5x_style.data.preferences import EncodedPreferences

# Batches that are filled at a time: enough for prompts of all sizes to find a place.
_OPEN_BATCHES = 16


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """How much a batch holds.

    Attributes:
      length_tokens: tokens in a row, at least those of the longest response with its prompt.
      batch_tokens: tokens in all; the published 16,384 do not say whether of each device.
      pairs_per_row: comparisons that a batch has room for, for each of its rows. It costs next to
        nothing.
    """

    length_tokens: int = 8192
    batch_tokens: int = 16384
    pairs_per_row: int = 128

    def __post_init__(self) -> None:
        if min(self.length_tokens, self.pairs_per_row) < 1 or (
            self.batch_tokens < 1 or self.batch_tokens % self.length_tokens
        ):
            raise ValueError(
                f"preference_batches.BatchShape.batch_tokens = {self.batch_tokens}, length_tokens "
                f"= {self.length_tokens}, pairs_per_row = {self.pairs_per_row}: must be at least "
                "1, and the first a multiple of the second"
            )

    @property
    def num_rows(self) -> int:
        """Rows of a batch."""
        return self.batch_tokens // self.length_tokens


class PreferenceBatches:
    """An endless iterator of batches for one host, with a small exact state.

    Each batch is a dict of inputs, positions and segment_ids, int32 [B, T]; chosen and rejected,
    int32 [B, Q, 2], row in the global batch and place in the row of the reward ids that are
    compared; and pair_weights, float32 [B, Q], 0 where there is no pair. Pairs fill the B times Q
    places from the first on; where they stand says nothing.

    Args:
      preferences: what to train on.
      shape: of a batch.
      seed: any integer; another seed, another order.
      prompts_alike: whether the pairs of a prompt together weigh 1, or each of them.
      rows: this host's rows of the global batch, None for all; they do not change the stream.

    Attributes:
      dropped: what was left out, by reason: that of `preferences`, and prompts "no_room", all of
        whose responses do not fit into one batch.

    Raises:
      ValueError: there is nothing to train on.
    """

    def __init__(
        self,
        preferences: EncodedPreferences,
        shape: BatchShape,
        seed: int,
        *,
        prompts_alike: bool = False,
        rows: range | None = None,
    ):
        self._own = own_rows_of(shape.length_tokens, shape.num_rows, rows)
        self._preferences, self._shape, self._seed = preferences, shape, seed
        self._prompts_alike = prompts_alike
        self._sizes = np.diff(preferences.bounds)
        self._num_pairs = [len(preferences.pairs(n)) for n in range(len(preferences))]
        fitting = [n for n in range(len(preferences)) if self._placed_in(_Room(shape), n)]
        self._prompts = np.array(fitting, np.int64)
        self.dropped = {**preferences.dropped, "no_room": len(preferences) - len(fitting)}
        if not fitting:
            raise ValueError(
                f"no prompt has two responses of different rank that fit into a batch; left out: "
                f"{self.dropped}. Give other preferences, or set "
                "preference_batches.BatchShape.length_tokens or batch_tokens to more"
            )
        self._epoch, self._next_batch = 0, 0
        self._plan = self._planned(0)
        self._stream = {
            "content": preferences.content,
            "length": shape.length_tokens,
            "batch_size": shape.num_rows,
            "pairs_per_row": shape.pairs_per_row,
            "prompts_alike": prompts_alike,
            "seed": seed,
        }

    def num_batches(self, epochs: int) -> int:
        """Returns how many batches hold every prompt once in each of the first epochs."""
        return len(self._plan) * (epochs > 0) + sum(
            len(self._planned(epoch)) for epoch in range(1, epochs)
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._next_batch == len(self._plan):
            self._epoch, self._next_batch = self._epoch + 1, 0
            self._plan = self._planned(self._epoch)
        room = self._plan[self._next_batch]
        self._next_batch += 1
        return self._written(room)

    def one_pass(self) -> Iterator[Batch]:
        """Yields the batches of the first epoch, whatever was taken; does not move the stream."""
        return map(self._written, self._planned(0))

    def state(self) -> dict[str, Any]:
        """Returns where the stream stands, as plain JSON values; the same on every host."""
        return {"epoch": self._epoch, "next_batch": self._next_batch, "stream": self._stream}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues where another stream of the same settings stood, on any number of hosts.

        Raises:
          ValueError: the state is of another stream.
        """
        if state["stream"] != self._stream:
            raise ValueError(
                f"the saved position is of other preferences or batches: {state['stream']} there, "
                f"{self._stream} here. Set them as they were, or start a new run folder"
            )
        self._epoch, self._next_batch = state["epoch"], state["next_batch"]
        self._plan = self._planned(self._epoch)

    def _planned(self, epoch: int) -> list["_Room"]:
        """Returns what each batch of an epoch holds, in the order in which they come."""
        num_prompts = len(self._prompts)
        order = permuted(np.arange(num_prompts), num_prompts, (self._seed, epoch))
        done, open_rooms = [], [_Room(self._shape)]
        for prompt in self._prompts[order].tolist():
            # The fullest that still takes it.
            for room in sorted(open_rooms, key=lambda room: room.num_free):
                if self._placed_in(room, prompt):
                    break
            else:
                if len(open_rooms) == _OPEN_BATCHES:
                    fullest = min(open_rooms, key=lambda room: room.num_free)
                    open_rooms.remove(fullest)
                    done.append(fullest)
                open_rooms.append(_Room(self._shape))
                self._placed_in(open_rooms[-1], prompt)
        done += open_rooms
        # Batches are closed in an order that follows from their prompts' sizes.
        mixed = permuted(np.arange(len(done)), len(done), (self._seed, epoch, -1))
        return [done[number] for number in mixed.tolist()]

    def _placed_in(self, room: "_Room", prompt: int) -> bool:
        first, stop = self._preferences.prompts[prompt : prompt + 2].tolist()
        sizes = self._sizes[first:stop].tolist()
        if room.num_free < sum(sizes):
            return False
        return room.place(prompt, range(first, stop), sizes, self._num_pairs[prompt])

    def _written(self, room: "_Room") -> Batch:
        shape, preferences = self._shape, self._preferences
        rows = (shape.num_rows, shape.length_tokens)
        names = ("inputs", "positions", "segment_ids")
        batch: Batch = {name: np.zeros(rows, np.int32) for name in names}
        ends: dict[int, tuple[int, int]] = {}
        for row, responses in enumerate(room.rows):
            at = 0
            for segment, response in enumerate(responses, start=1):
                ids = preferences.ids(response)
                here = slice(at, at + len(ids))
                batch["inputs"][row, here] = ids
                batch["positions"][row, here] = np.arange(len(ids))
                batch["segment_ids"][row, here] = segment
                at += len(ids)
                ends[response] = (row, at - 1)
        places = shape.num_rows * shape.pairs_per_row
        compared, weights = np.zeros((2, places, 2), np.int32), np.zeros(places, np.float32)
        at = 0
        for prompt in room.prompts:
            pairs = preferences.pairs(prompt).tolist()
            for better, worse in pairs:
                compared[:, at] = ends[better], ends[worse]
                weights[at] = 1 / len(pairs) if self._prompts_alike else 1
                at += 1
        by_row = (shape.num_rows, shape.pairs_per_row)
        batch["chosen"], batch["rejected"] = compared.reshape(2, *by_row, 2)
        batch["pair_weights"] = weights.reshape(by_row)
        own = slice(self._own.start, self._own.stop)
        return {name: array[own] for name, array in batch.items()}


class _Room:
    """A batch that is being filled."""

    def __init__(self, shape: BatchShape):
        self.prompts: list[int] = []
        self.rows: list[list[int]] = [[] for _ in range(shape.num_rows)]
        self.num_free = shape.num_rows * shape.length_tokens
        self._free = [shape.length_tokens] * shape.num_rows
        self._free_pairs = shape.num_rows * shape.pairs_per_row

    def place(
        self, prompt: int, responses: Sequence[int], sizes: Sequence[int], num_pairs: int
    ) -> bool:
        """Takes all responses to a prompt, or none of them, and says which."""
        if num_pairs > self._free_pairs:
            return False
        free, rows = list(self._free), []
        for size in sorted(sizes, reverse=True):
            fitting = [row for row, left in enumerate(free) if left >= size]
            if not fitting:
                return False
            rows.append(min(fitting, key=free.__getitem__))
            free[rows[-1]] -= size
        longest_first = sorted(zip(sizes, responses, strict=True), key=lambda pair: -pair[0])
        for row, (_, response) in zip(rows, longest_first, strict=True):
            self.rows[row].append(response)
        self.prompts.append(prompt)
        self._free, self.num_free = free, sum(free)
        self._free_pairs -= num_pairs
        return True
