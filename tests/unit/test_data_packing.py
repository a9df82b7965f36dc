"""Packing: every prediction once, rows filled, arrays as documented."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_style.data import packing
from t5x_style.data.token_store import TokenStore, TokenStoreWriter
from tests.unit.data_stores import fake_vocabulary, numbered_store


def starts_of(num_targets):
    """Where examples start when they lie one after another, each with one id more."""
    return np.cumsum(num_targets + 1) - (num_targets + 1)


def log_normal(count, seed, sigma=1.0, mean=330):
    rng = np.random.default_rng(seed)
    draws = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.maximum(1, draws).astype(np.int64)


@settings(max_examples=100)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=60), length=st.integers(1, 17))
def test_every_prediction_is_in_exactly_one_row_that_holds_it(sizes, length):
    num_targets = np.array(sizes, np.int64)
    starts = starts_of(num_targets)
    plan = packing.plan(starts, num_targets, length)
    covered = [
        first + offset + 1
        for first, size in zip(plan.starts, plan.sizes, strict=True)
        for offset in range(size)
    ]
    wanted = [s + offset + 1 for s, n in zip(starts, sizes, strict=True) for offset in range(n)]
    assert sorted(covered) == wanted
    assert (plan.sizes >= 1).all()
    in_row = np.add.reduceat(plan.sizes, plan.row_splits[:-1]) if plan.num_rows else np.array([])
    assert (np.diff(plan.row_splits) >= 1).all()
    assert (in_row <= length).all()
    # Best fit leaves no two rows that would have fitted into one.
    assert (np.sort(in_row)[:2].sum() > length) or len(in_row) < 2


def test_each_piece_goes_to_the_fullest_row_that_takes_it():
    num_targets = np.array([7, 5, 3, 3, 2])
    plan = packing.plan(starts_of(num_targets), num_targets, 10)
    rows = [sizes.tolist() for sizes in np.split(plan.sizes, plan.row_splits[1:-1])]
    # 3 completes 7; 5, 3 and 2 make the other row.
    assert rows == [[7, 3], [5, 3, 2]]


def test_a_long_example_is_cut_and_its_remainder_kept():
    plan = packing.plan(np.array([100]), np.array([25]), 10)
    assert sorted(zip(plan.starts.tolist(), plan.sizes.tolist(), strict=True)) == [
        (100, 10),
        (110, 10),
        (120, 5),
    ]


@pytest.mark.parametrize("length", [512, 2048, 4096, 32768])
@pytest.mark.parametrize("sigma", [0.7, 1.0, 1.3])
def test_a_window_of_4096_documents_fills_995_of_1000_slots(length, sigma):
    num_targets = log_normal(4096, seed=length, sigma=sigma)
    size = packing.window_size(num_targets, length)
    assert 2048 < size <= 4096
    plan = packing.plan(starts_of(num_targets[:size]), num_targets[:size], length)
    assert plan.num_tokens == num_targets[:size].sum()
    assert plan.num_tokens / (plan.num_rows * length) >= 0.995


def test_a_window_is_never_empty():
    for count in (1, 2, 3):
        assert 1 <= packing.window_size(np.full(count, 5), 7) <= count


def test_rows_are_written_as_documented(tmp_path):
    masks = {0: [0, 1, 1, 0], 1: [1, 0, 1]}
    with TokenStoreWriter(
        tmp_path, fake_vocabulary(), task="t", split="s", with_loss_mask=True
    ) as writer:
        writer.add([1, 10, 11, 2], masks[0])
        writer.add([1, 20, 2], masks[1])
    store = TokenStore.open(tmp_path)
    plan = packing.plan(np.array([0, 4]), np.array([3, 2]), 6)
    arrays = packing.empty_rows(2, 6)
    packing.write_rows(arrays, np.array([1]), store, plan, np.array([0]))
    assert {name: array[0].any() for name, array in arrays.items()} == dict.fromkeys(arrays, False)
    row = {name: array[1].tolist() for name, array in arrays.items()}
    assert row == {
        "inputs": [1, 10, 11, 1, 20, 0],
        "targets": [10, 11, 2, 20, 2, 0],
        "positions": [0, 1, 2, 0, 1, 0],
        "segment_ids": [1, 1, 1, 2, 2, 0],
        "target_bytes": [3, 4, 2, 6, 2, 0],
        "loss_weights": [1.0, 1.0, 0.0, 0.0, 1.0, 0.0],
    }
    assert {str(array.dtype) for array in arrays.values()} == {"int32", "float32"}
    assert arrays["loss_weights"].dtype == np.float32


def test_a_cut_example_predicts_across_the_cut(tmp_path):
    store = TokenStore.open(numbered_store(tmp_path, [5]))
    plan = packing.plan(store.offsets[:1], np.array([5]), 3)
    arrays = packing.empty_rows(2, 3)
    packing.write_rows(arrays, np.arange(2), store, plan, np.arange(2))
    assert arrays["inputs"].tolist() == [[1, 3, 4], [5, 6, 0]]
    assert arrays["targets"].tolist() == [[3, 4, 5], [6, 7, 0]]
    assert arrays["positions"].tolist() == [[0, 1, 2], [0, 1, 0]]
    assert arrays["loss_weights"].tolist() == [[1, 1, 1], [1, 1, 0]]
