"""Prefetching changes when batches are made, not which, and its state is that of the last one."""

import threading

import numpy as np
import pytest

from t5x_style.data.batches import Batches, Component
from t5x_style.data.prefetch import Prefetch
from tests.unit.data_stores import numbered_store


@pytest.fixture
def store(tmp_path):
    return numbered_store(tmp_path, [5, 9, 17, 3, 12, 30, 8])


def plain(store, **settings):
    return Batches([Component(store)], length=8, batch_size=2, seed=0, **settings)


_END = StopIteration()


class Counting:
    """A stream that counts, fails or ends at a given number."""

    def __init__(self, end: int | None = None, error: Exception = _END):
        self.made, self._end, self._error = 0, end, error

    def __next__(self):
        if self.made == self._end:
            raise self._error
        self.made += 1
        return {"number": np.array(self.made)}

    def state(self):
        return {"made": self.made}

    def restore(self, state):
        self.made = state["made"]


def test_batches_and_states_are_those_of_the_plain_stream(store):
    expected, ahead = plain(store), Prefetch(plain(store), depth=3)
    assert ahead.state() == expected.state()
    for _ in range(20):
        np.testing.assert_array_equal(next(ahead)["targets"], next(expected)["targets"])
        assert ahead.state() == expected.state()
    ahead.close()


def test_restoring_drops_what_was_made_ahead(store):
    ahead = Prefetch(plain(store), depth=4)
    for _ in range(3):
        next(ahead)
    state = ahead.state()
    expected = [next(ahead)["targets"] for _ in range(5)]
    ahead.restore(state)
    assert ahead.state() == state
    for targets in expected:
        np.testing.assert_array_equal(next(ahead)["targets"], targets)
    resumed = Prefetch(plain(store))
    resumed.restore(state)
    np.testing.assert_array_equal(next(resumed)["targets"], expected[0])
    ahead.close()
    resumed.close()


@pytest.mark.parametrize("depth", [1, 3])
def test_at_most_depth_and_one_are_made_ahead(depth):
    inner = Counting()
    ahead = Prefetch(inner, depth=depth)
    next(ahead)
    # Closing waits for the thread, so the count is final.
    ahead.close()
    assert 1 <= inner.made <= 1 + depth + 1


@pytest.mark.parametrize("error", [ValueError("damaged"), StopIteration()])
def test_errors_and_the_end_arrive_after_the_batches_before_them(error):
    ahead = Prefetch(Counting(end=2, error=error), depth=5)
    assert [int(next(ahead)["number"]) for _ in range(2)] == [1, 2]
    for _ in range(2):
        with pytest.raises(type(error)):
            next(ahead)
    assert ahead.state() == {"made": 2}


def test_a_closed_stream_says_so_and_leaves_no_thread():
    before = threading.active_count()
    ahead = Prefetch(Counting())
    next(ahead)
    ahead.close()
    ahead.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(ahead)
    assert threading.active_count() == before


def test_depth_is_checked():
    with pytest.raises(ValueError, match=r"Prefetch\.depth = 0"):
        Prefetch(Counting(), depth=0)
