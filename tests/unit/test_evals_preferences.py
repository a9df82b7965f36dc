"""Accuracy, histogram and calibration of scores, against what is counted by hand."""

import numpy as np
import pytest

from t5x_style.data.preferences import EncodedPreferences
from t5x_style.evals.preferences import calibration, preference_measures


def preferences(ranks, domains):
    """Prompts with responses of these ranks; ids are of no interest here."""
    sizes = [len(of_prompt) for of_prompt in ranks]
    num = sum(sizes)
    return EncodedPreferences(
        tokens=np.zeros(num, np.int32),
        bounds=np.arange(num + 1),
        ranks=np.concatenate(ranks).astype(np.int32),
        prompts=np.concatenate([[0], np.cumsum(sizes)]),
        domains=tuple(domains),
        dropped={},
    )


def test_accuracy_and_margin_by_domain():
    found = preference_measures(
        np.array([2.0, 1.0, -1.0, 0.5, 0.5, 4.9, -3.0]),
        preferences([[0, 1, 2], [0, 1], [1, 0]], ["a", "b", "a"]),
    )
    # (2, 1), (2, -1), (1, -1) and (-3, 4.9) of a; a tie of b.
    assert found["by_domain"]["a"]["num_pairs"] == 4
    assert found["by_domain"]["a"]["accuracy"] == 0.75
    assert found["by_domain"]["a"]["margin"] == pytest.approx((1 + 3 + 2 - 7.9) / 4)
    assert found["by_domain"]["b"] == {
        "num_pairs": 1,
        "accuracy": 0.5,
        "margin": 0.0,
        "ranking_loss": pytest.approx(np.log(2)),
    }
    assert (found["num_prompts"], found["num_pairs"], found["accuracy"]) == (3, 5, 0.7)
    assert found["near_bound"] == pytest.approx(1 / 7)
    histogram = found["histogram"]
    assert (histogram["edges"][0], histogram["edges"][-1]) == (-5, 5)
    # The best of each prompt: 2, 0.5 and -3.
    assert sum(histogram["best"]) == 3
    assert sum(histogram["others"]) == 4
    assert [histogram["edges"][i] for i, n in enumerate(histogram["best"]) if n] == [-3, 0.5, 2]


def test_scores_beyond_the_bound_are_in_the_histogram():
    found = preference_measures(np.array([12.0, -1.0]), preferences([[0, 1]], ["a"]))
    assert found["histogram"]["edges"][-1] == 12
    assert sum(found["histogram"]["best"]) == 1


def test_scores_that_mean_what_they_say_are_calibrated():
    rng = np.random.default_rng(0)
    size = rng.uniform(0, 3, 200_000)
    is_right = rng.random(len(size)) < 1 / (1 + np.exp(-size))
    found = calibration(np.where(is_right, size, -size))
    assert found["expected_error"] < 0.01
    assert sum(row["num_pairs"] for row in found["bins"]) == len(size)
    for row in found["bins"]:
        assert row["low"] <= row["predicted"] <= row["high"]
    too_sure = calibration(3 * np.where(is_right, size, -size))
    assert too_sure["expected_error"] > 0.1


def test_the_calibration_error_by_hand():
    # Two bins: probability 0.731 is right in 1 of 2, probability 0.953 in 2 of 2.
    found = calibration(np.array([1.0, -1.0, 3.0, 3.0]))
    p, q = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-3))
    assert [(row["num_pairs"], row["frequency"]) for row in found["bins"]] == [(2, 0.5), (2, 1.0)]
    assert found["expected_error"] == pytest.approx((abs(p - 0.5) + abs(q - 1)) / 2)
