"""Position buckets and their totals, without a model."""

import math
from typing import Any

import numpy as np
import pytest

from t5x_style.evals.perplexity import PositionTotals, position_edges


def _batch(rows, length):
    """Packs rows of (nats, bytes) pieces by hand; returns the batch and its nats."""
    shape = (len(rows), length)
    batch = {
        "positions": np.zeros(shape, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "loss_weights": np.zeros(shape, np.float32),
        "target_bytes": np.zeros(shape, np.int32),
    }
    nll = np.full(shape, np.nan, np.float32)  # padding may hold anything
    for i, pieces in enumerate(rows):
        at = 0
        for segment, (nats, num_bytes) in enumerate(pieces, start=1):
            here = slice(at, at + len(nats))
            nll[i, here] = nats
            batch["target_bytes"][i, here] = num_bytes
            batch["positions"][i, here] = np.arange(len(nats))
            batch["segment_ids"][i, here] = segment
            batch["loss_weights"][i, here] = 1
            at += len(nats)
    return batch, nll


def _pieces(count, rng, longest=20):
    sizes = rng.integers(1, longest, count)
    return [(rng.gamma(2.0, 1.5, n).astype(np.float32), rng.integers(0, 7, n)) for n in sizes]


def test_edges_are_log_spaced_and_end_at_the_length():
    assert position_edges(100) == (0, 16, 32, 64, 100)
    assert position_edges(64) == (0, 16, 32, 64)
    assert position_edges(8) == (0, 8)
    assert position_edges(64, first_tokens=16, per_doubling=2) == (0, 16, 23, 32, 45, 64)
    assert position_edges(5, first_tokens=1, per_doubling=4) == (0, 1, 2, 3, 4, 5)
    with pytest.raises(ValueError, match="length 0"):
        position_edges(0)


def test_totals_are_the_float64_sums_whatever_the_packing():
    rng = np.random.default_rng(0)
    pieces = _pieces(30, rng)
    edges = (0, 4, 8, 20)
    apart, together = PositionTotals(edges), PositionTotals(edges)
    for piece in pieces:
        apart.add(*_batch([[piece]], 20))
    rows = [pieces[i : i + 3] for i in range(0, 30, 3)]
    for i in range(0, 10, 5):
        together.add(*_batch(rows[i : i + 5], 60))
    nats = np.concatenate([p[0] for p in pieces]).astype(np.float64)
    sizes = np.concatenate([p[1] for p in pieces])
    positions = np.concatenate([np.arange(len(p[0])) for p in pieces])
    for totals in (apart, together):
        total = totals.total()
        assert (total.num_tokens, total.num_bytes) == (len(nats), sizes.sum())
        assert total.num_pieces == 30
        expected = nats.sum() / math.log(2) / sizes.sum()
        assert total.bits_per_byte == pytest.approx(expected, rel=1e-12)
        for start, stop, ratio in totals.by_position():
            here = (positions >= start) & (positions < stop)
            assert ratio.num_tokens == here.sum()
            assert ratio.loss == pytest.approx(nats[here].mean(), rel=1e-12)


def test_standard_error_is_that_of_the_ratio_estimator_and_covers_the_truth():
    rng = np.random.default_rng(1)
    pieces = _pieces(40, rng)
    totals = PositionTotals((0, 20))
    totals.add(*_batch([[p] for p in pieces], 20))
    bits = np.array([p[0].astype(np.float64).sum() / math.log(2) for p in pieces])
    sizes = np.array([p[1].sum() for p in pieces], np.float64)
    residuals = bits - bits.sum() / sizes.sum() * sizes
    expected = math.sqrt(40 * residuals.var(ddof=1)) / sizes.sum()
    assert totals.total().standard_error == pytest.approx(expected, rel=1e-9)
    # The bootstrap over pieces, which assumes nothing, agrees.
    draws = rng.integers(0, 40, (2000, 40))
    spread = (bits[draws].sum(1) / sizes[draws].sum(1)).std()
    assert totals.total().standard_error == pytest.approx(spread, rel=0.15)


def test_difference_to_a_baseline_is_paired_by_piece():
    rng = np.random.default_rng(2)
    pieces = _pieces(40, rng)
    batch, nll = _batch([pieces[:20], pieces[20:]], 400)
    better = nll - rng.normal(0.1, 0.02, nll.shape).astype(np.float32)
    before, after = PositionTotals((0, 8, 20)), PositionTotals((0, 8, 20))
    before.add(batch, nll)
    after.add(batch, better)
    assert before.total().difference is None
    values: dict[str, Any] = after.total(before).to_dict()
    base: dict[str, Any] = before.total().to_dict()
    difference = values["bits_per_byte"] - base["bits_per_byte"]
    assert values["difference"] == pytest.approx(difference, rel=1e-9)
    # Sure where neither value is: the draw of the documents is common to both.
    assert values["difference_error"] < 0.2 * values["standard_error"]
    assert abs(difference) > 10 * values["difference_error"]
    buckets: list[dict[str, Any]] = [m.to_dict() for _, _, m in after.by_position(before)]
    parts = [bucket["difference"] * bucket["num_bytes"] for bucket in buckets]
    assert sum(parts) == pytest.approx(difference * values["num_bytes"])
    other = PositionTotals((0, 8, 20))
    other.add(*_batch([pieces[:19], pieces[20:]], 400))
    with pytest.raises(ValueError, match="different text"):
        after.total(other)


def test_end_of_document_counts_bits_and_no_bytes_and_masked_targets_count_nothing():
    batch, nll = _batch([[(np.array([1, 2, 4], np.float32), [3, 5, 0])]], 4)
    totals = PositionTotals((0, 4))
    totals.add(batch, nll)
    assert totals.total().bits_per_byte == pytest.approx(7 / math.log(2) / 8)
    batch["loss_weights"][0, 1] = 0
    masked = PositionTotals((0, 4))
    masked.add(batch, nll)
    assert masked.total().num_tokens == 2
    assert masked.total().bits_per_byte == pytest.approx(5 / math.log(2) / 3)


def test_short_pieces_can_be_left_out():
    pieces = [(np.ones(n, np.float32), np.ones(n, int)) for n in (3, 8, 8, 5)]
    totals = PositionTotals((0, 4, 8), min_piece_tokens=8)
    totals.add(*_batch([pieces[:2], pieces[2:]], 16))
    assert [(r.num_tokens, r.num_pieces) for _, _, r in totals.by_position()] == [(8, 2), (8, 2)]
    assert totals.total().num_pieces == 2


def test_nothing_counted_gives_no_ratio_rather_than_a_crash():
    totals = PositionTotals((0, 4))
    totals.add(*_batch([[]], 4))
    assert totals.total().bits_per_byte is None
    assert totals.total().loss is None
    assert totals.by_position() == []
    totals.add(*_batch([[(np.array([1], np.float32), [0])]], 4))
    assert totals.total().bits_per_byte is None
    assert totals.total().standard_error is None


def test_errors_name_the_setting():
    with pytest.raises(ValueError, match=r"evaluate\.position_edges"):
        PositionTotals((0, 8, 8))
    with pytest.raises(ValueError, match=r"position 7, beyond the last edge 4"):
        PositionTotals((0, 4)).add(*_batch([[(np.ones(8, np.float32), np.ones(8, int))]], 8))
    batch, nll = _batch([[(np.array([1, np.inf], np.float32), [1, 1])]], 2)
    with pytest.raises(ValueError, match="1 of 2 targets"):
        PositionTotals((0, 2)).add(batch, nll)
