"""Rewards, advantages and divergences against float64 by the formula, and exact values."""

from fractions import Fraction as F

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.ops.advantages import generalized_advantages, token_kl, token_rewards, whiten

REWARDS = [0, 0, 0, 1]
VALUES = [0.5, 0.25, 0.75, 0.5]


def literal_advantages(rewards, values, discount, trace_decay):
    """Every advantage as the sum that defines it, of one unpadded row."""
    num = len(rewards)
    deltas = [
        rewards[t] + (discount * values[t + 1] if t + 1 < num else 0) - values[t]
        for t in range(num)
    ]
    return [
        sum((discount * trace_decay) ** (s - t) * deltas[s] for s in range(t, num))
        for t in range(num)
    ]


def ours(rewards, values, mask, discount, trace_decay):
    arrays = (jnp.asarray(x, jnp.float64) for x in (rewards, values, mask))
    return np.asarray(generalized_advantages(*arrays, discount=discount, trace_decay=trace_decay))


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("discount", "trace_decay", "expected"),
    [
        (1, 1, [F(1, 2), F(3, 4), F(1, 4), F(1, 2)]),
        (1, 0, [F(-1, 4), F(1, 2), F(-1, 4), F(1, 2)]),
        (1, 0.95, [F(6849, 16000), F(571, 800), F(9, 40), F(1, 2)]),
        (0.9, 0.5, [F(-1583, 16000), F(313, 800), F(-3, 40), F(1, 2)]),
    ],
)
def test_advantages_equal_exact_fractions(discount, trace_decay, expected):
    found = ours([REWARDS], [VALUES], [[1, 1, 1, 1]], discount, trace_decay)[0]
    np.testing.assert_allclose(found, [float(x) for x in expected], rtol=0, atol=1e-15)


def test_advantages_equal_the_literal_sum_in_rows_with_prompts_and_padding():
    rng = np.random.default_rng(0)
    lengths, starts, total = [5, 1, 9, 12], [3, 0, 2, 0], 12
    rewards, values = rng.normal(size=(2, 4, total))
    mask = np.zeros((4, total))
    expected = np.zeros((4, total))
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        here = slice(start, start + length)
        mask[row, here] = 1
        expected[row, here] = literal_advantages(rewards[row, here], values[row, here], 0.97, 0.99)[
            : mask[row, here].size
        ]
    found = ours(rewards, values, mask, 0.97, 0.99)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    assert np.all(found[mask == 0] == 0)
    order = [2, 0, 3, 1]
    again = ours(rewards[order], values[order], mask[order], 0.97, 0.99)
    np.testing.assert_array_equal(again, found[order])


def test_with_a_trace_decay_of_one_an_advantage_is_return_less_value():
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=(2, 1, 7))
    found = ours(rewards, values, np.ones((1, 7)), 0.9, 1.0)[0]
    returns = [sum(0.9 ** (s - t) * rewards[0, s] for s in range(t, 7)) for t in range(7)]
    np.testing.assert_allclose(found, np.array(returns) - values[0], atol=1e-14)


def test_estimators_of_kl_average_to_it_where_they_should():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    kl = float(np.sum(p * np.log(p / q)))
    assert kl == pytest.approx(0.025267153922, abs=1e-12)
    mean = {
        name: float(np.sum(p * np.asarray(token_kl(jnp.log(p), jnp.log(q), name))))
        for name in ("k1", "k2", "k3")
    }
    assert mean["k1"] == pytest.approx(kl, abs=1e-14)
    assert mean["k3"] == pytest.approx(kl, abs=1e-14)
    assert mean["k2"] == pytest.approx(0.024862407345, abs=1e-12)
    assert np.all(np.asarray(token_kl(jnp.log(p), jnp.log(q), "k3")) >= 0)
    for name in mean:
        assert np.all(np.asarray(token_kl(jnp.log(p), jnp.log(p), name)) == 0)
    with pytest.raises(ValueError, match="k4"):
        token_kl(jnp.log(p), jnp.log(q), "k4")


def test_the_score_is_given_at_the_last_token_and_the_penalty_at_each():
    mask = jnp.array([[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], jnp.float64)
    kl = jnp.full((3, 4), 2.0)
    found = token_rewards(kl, jnp.array([10.0, 20.0, 30.0]), mask, 0.5)
    np.testing.assert_array_equal(found, [[0, -1, 9, 0], [19, 0, 0, 0], [-1, -1, -1, 29]])
    same = token_rewards(jnp.zeros((3, 4)), jnp.array([10.0, 20.0, 30.0]), mask, 0.5)
    np.testing.assert_array_equal(jnp.sum(same, axis=1), [10, 20, 30])


def test_whitening_sees_the_mask_alone():
    x = jnp.array([1.0, 2, 3, 4, 100])
    mask = jnp.array([1.0, 1, 1, 1, 0])
    expected = (np.arange(1, 5) - 2.5) / np.sqrt(1.25 + 1e-8)
    np.testing.assert_allclose(whiten(x, mask)[:4], expected, atol=1e-14)
    assert whiten(x, mask)[4] == 0
    kept = np.asarray(whiten(x, mask, shift_mean=False))[:4]
    np.testing.assert_allclose(kept, expected + 2.5, atol=1e-14)
