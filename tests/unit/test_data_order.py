"""Orders: a permutation in every epoch, random access, no correlation that counting can see."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_style.data.order import SequentialOrder, ShuffledOrder, permuted, scrambled


@settings(max_examples=60)
@given(size=st.integers(1, 3000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 10**9))
def test_permuted_is_a_permutation(size, seed, epoch):
    assert sorted(permuted(np.arange(size), size, (seed, epoch))) == list(range(size))


def test_permuted_is_the_same_everywhere():
    # Frozen: a change here silently changes the data order of every run that is resumed.
    assert permuted(np.arange(10), 10, (7, 3)).tolist() == [4, 2, 5, 9, 8, 3, 0, 7, 1, 6]


def test_permuted_of_a_huge_range_needs_no_memory_and_stays_one_to_one():
    size = 10**12 + 39
    out = permuted(np.arange(size - 5000, size), size, (1, 2))
    assert len(set(out.tolist())) == 5000
    assert out.min() >= 0
    assert out.max() < size


def test_every_order_of_few_examples_is_about_equally_likely():
    counts = Counter(tuple(permuted(np.arange(4), 4, (0, epoch))) for epoch in range(4800))
    assert len(counts) == 24
    # 200 expected; five standard deviations.
    assert all(abs(count - 200) < 71 for count in counts.values())


def test_places_are_uniform_and_seeds_and_epochs_independent():
    draws = np.array([permuted(np.arange(50), 50, (3, epoch)) for epoch in range(2000)])
    counts = np.stack([np.bincount(draws[:, i], minlength=50) for i in range(50)])
    chi_square = ((counts - 40) ** 2 / 40).sum()
    # 49 * 49 degrees of freedom; five standard deviations.
    assert abs(chi_square - 2401) < 5 * np.sqrt(2 * 2401)
    first, other = (permuted(np.arange(5000), 5000, key) for key in [(0, 0), (1, 0)])
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.07
    assert abs(np.corrcoef(first, np.arange(5000))[0, 1]) < 0.07


def test_scrambled_values_differ_and_depend_on_the_key():
    one, other = scrambled(np.arange(1000), (1,)), scrambled(np.arange(1000), (2,))
    assert len(set(one.tolist())) == 1000
    assert not (one == other).any()


@pytest.mark.parametrize("order_class", [ShuffledOrder, SequentialOrder])
@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_every_epoch_has_every_example_once(order_class, size):
    examples = np.arange(1000, 1000 + 3 * size, 3)
    order = order_class(examples, 5)
    for epoch in range(3):
        start = epoch * size
        assert order.next_boundary(start) == start + size
        assert order.next_boundary(start + size - 1) == start + size
        assert sorted(order.at(np.arange(start, start + size))) == examples.tolist()


def test_any_place_can_be_entered_directly():
    order = ShuffledOrder(np.arange(97), 11)
    whole = order.at(np.arange(500))
    assert (order.at(np.array([499, 3, 96, 97])) == whole[[499, 3, 96, 97]]).all()


def test_epochs_and_seeds_differ():
    order = ShuffledOrder(np.arange(50), 0)
    first, second = order.at(np.arange(50)), order.at(np.arange(50, 100))
    assert (first != second).any()
    assert (first != ShuffledOrder(np.arange(50), 1).at(np.arange(50))).any()
    assert (SequentialOrder(np.arange(50), 0).at(np.arange(50)) == np.arange(50)).all()
