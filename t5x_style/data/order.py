"""The order in which examples come: (seed, place in the endless stream) -> example, in O(1).

Nothing is shuffled in memory and nothing is remembered: a stream at any place can be entered
directly, by any host. A sampler that is more than a shuffle (clustered, curriculum) is another
class with the two methods of `Order`, named in `Component.order`.
"""

from typing import Protocol

import numpy as np

_ROUNDS = 6
_MASK_64 = (1 << 64) - 1


class Order(Protocol):
    """An endless sequence of examples."""

    def at(self, places: np.ndarray) -> np.ndarray:
        """Returns the examples, int64[n], at these places, int64[n], of the stream."""
        ...

    def next_boundary(self, place: int) -> int | None:
        """Returns the first place after `place` where an epoch starts; None where none does.

        Rows are packed from examples between two boundaries only, so that everything before a
        boundary is trained on before anything after it.
        """
        ...


class ShuffledOrder:
    """Epoch after epoch over all examples, each epoch in its own pseudo-random order.

    Within an epoch every example comes once. This is what `Component.order` is by default.

    Args:
      examples: int64[n], the numbers of the examples to draw from, n >= 1.
      seed: any integer.
    """

    def __init__(self, examples: np.ndarray, seed: int):
        self._examples, self._seed = examples, seed

    def at(self, places: np.ndarray) -> np.ndarray:
        size = len(self._examples)
        epochs, within = np.divmod(np.asarray(places, np.int64), size)
        out = np.empty(len(within), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            out[here] = self._examples[permuted(within[here], size, (self._seed, int(epoch)))]
        return out

    def next_boundary(self, place: int) -> int:
        size = len(self._examples)
        return (place // size + 1) * size


class SequentialOrder:
    """Epoch after epoch over all examples as they lie in the store."""

    def __init__(self, examples: np.ndarray, seed: int):
        del seed  # the order of the store needs none
        self._examples = examples

    def at(self, places: np.ndarray) -> np.ndarray:
        return self._examples[np.asarray(places, np.int64) % len(self._examples)]

    def next_boundary(self, place: int) -> int:
        size = len(self._examples)
        return (place // size + 1) * size


def permuted(values: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Applies the keyed pseudo-random permutation of [0, size) to some values.

    A Feistel network on the smallest even number of bits that holds `size`, walked until the value
    is in range again (cycle walking), so it is a permutation of exactly [0, size) that needs no
    memory. It uses integer arithmetic only: the same on every platform and NumPy version.

    Args:
      values: int64[n] in [0, size).
      size: number of values that are permuted, at least 1.
      key: integers that choose the permutation.

    Returns:
      int64[n].
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    state = _key_state(key)
    round_keys = [np.uint64(_mix_int(state + number)) for number in range(_ROUNDS)]
    out = np.asarray(values, np.int64).astype(np.uint64)
    todo = np.arange(len(out))
    while len(todo):
        left, right = out[todo] >> np.uint64(half), out[todo] & low
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & low)
        out[todo] = (left << np.uint64(half)) | right
        todo = todo[out[todo] >= size]
    return out.astype(np.int64)


def scrambled(values: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
    """Returns a keyed pseudo-random uint64 for each value, int64[n]; sorting by it shuffles."""
    return _mix(_mix(np.asarray(values, np.int64).astype(np.uint64) + np.uint64(_key_state(key))))


def _key_state(key: tuple[int, ...]) -> int:
    state = 0
    for part in key:
        state = _mix_int(state ^ (part & _MASK_64))
    return state


def _mix(values: np.ndarray) -> np.ndarray:
    """Scrambles 64-bit integers, uint64[n]: the finaliser of SplitMix64 (doi 10.1145/2714064)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _mix_int(value: int) -> int:
    """`_mix` of one integer, after SplitMix64's increment so that zero is not left as it is."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    return int(_mix(np.array([value], np.uint64))[0])
