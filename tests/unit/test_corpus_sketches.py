"""Sketches against NumPy on the numbers themselves, and the same whatever the order."""

import json

import numpy as np
import pytest

from t5x_style.corpus.sketches import Bins, Sketch

EVEN = Bins.even(0.0, 1.0, 100)


def sketch_of(parts, bins=EVEN):
    sketch = Sketch(bins)
    for part in parts:
        sketch.add(np.array(part))
    return sketch


def test_sums_are_those_of_the_numbers():
    values = np.random.default_rng(0).beta(2, 5, 5000)
    sketch = sketch_of([values])
    assert sketch.count == 5000
    assert sketch.sum == pytest.approx(values.sum(), abs=5000 * 2.0**-21)
    assert sketch.mean == pytest.approx(values.mean(), abs=2.0**-23)  # rounded, not cut
    assert sketch.deviation == pytest.approx(values.std(), abs=2.0**-20)
    assert sketch.least == pytest.approx(values.min(), abs=2.0**-21)
    assert sketch.most == pytest.approx(values.max(), abs=2.0**-21)
    np.testing.assert_array_equal(sketch.histogram, np.histogram(values, np.array(EVEN.edges))[0])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_quantiles_are_within_a_bin(share):
    rng = np.random.default_rng(1)
    values = rng.beta(2, 5, 4000)
    assert sketch_of([values]).quantile(share) == pytest.approx(
        np.quantile(values, share), abs=0.01
    )
    counts = np.floor(np.exp(rng.normal(6, 1.5, 4000)))
    exact = np.quantile(counts, share, method="inverted_cdf")
    found = sketch_of([counts], Bins.counts()).quantile(share)
    assert found == int(found)
    assert exact / 2**0.26 - 1 <= found <= exact * 2**0.26 + 1


def test_small_counts_have_bins_of_their_own():
    counts = [0, 1, 1, 2, 3, 3, 3]
    sketch = sketch_of([counts], Bins.counts())
    assert [sketch.quantile(share) for share in (0.1, 0.3, 0.5, 0.9)] == [0, 1, 2, 3]


def test_shares_of_nothing_have_a_bin_of_their_own():
    bins = Bins.shares()
    sketch = sketch_of([[0.0] * 6 + [0.004, 0.004, 0.5]], bins)
    assert sketch.quantile(0.5) == pytest.approx(0, abs=1e-6)
    assert sketch.histogram[:2].tolist() == [6, 2]
    assert len(bins.edges) == 102


def test_sketches_add_up_to_the_same_bits_in_any_order():
    rng = np.random.default_rng(2)
    values = np.exp(rng.normal(0, 12, 3000))  # sums of such floats depend on their order
    whole = sketch_of([values], Bins.counts()).to_json()
    assert sum(values.tolist()) != sum(sorted(values.tolist()))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(3000)
        merged = Sketch(Bins.counts())
        for part in np.array_split(values[order], 1 + 40 * seed):
            merged.merge(sketch_of([part], Bins.counts()))
        assert merged.to_json() == whole


def test_a_sketch_comes_back_from_json():
    for parts in ([], [[0.25, 0.5, 0.99]], [[-3.0, 7.5]]):
        sketch = sketch_of(parts)
        text = json.dumps(sketch.to_json())
        again = Sketch.from_json(json.loads(text), EVEN)
        assert json.dumps(again.to_json()) == text
        np.testing.assert_array_equal(again.histogram, sketch.histogram)


def test_what_lies_outside_counts_in_the_outermost_bins():
    sketch = sketch_of([[-1.0, 0.0, 1.0, 9.0]])
    assert (sketch.histogram[0], sketch.histogram[-1]) == (2, 2)
    assert (sketch.least, sketch.most) == (-1.0, 9.0)
    assert sketch.quantile(1.0) == pytest.approx(1.0)


def test_what_cannot_be_added_is_refused():
    with pytest.raises(ValueError, match="finite"):
        sketch_of([[np.nan]])
    with pytest.raises(ValueError, match="different bins"):
        sketch_of([]).merge(Sketch(Bins.counts()))
