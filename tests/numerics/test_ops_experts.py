"""Experts over sorted rows and over buffers: each row what its own expert makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.ops import experts
from t5x_style.ops.experts import Experts
from t5x_style.ops.rows import combine_rows, take_rows

NUM_EXPERTS, DIM, INNER = 5, 6, 8


def arrays(num_rows, copies, *, chosen=None):
    rng = np.random.default_rng(num_rows)
    shapes = [(DIM, INNER), (DIM, INNER), (INNER, DIM)]
    weights = Experts(*(rng.normal(size=(NUM_EXPERTS, *shape)) for shape in shapes))
    x, d_y = rng.normal(size=(num_rows, DIM)), rng.normal(size=(num_rows, copies, DIM))
    if chosen is None:
        chosen = rng.integers(0, NUM_EXPERTS + 1, (num_rows, copies))
    return x, weights, np.int32(np.broadcast_to(chosen, (num_rows, copies))), d_y


def formula(x_D, weights, expert):
    if expert >= NUM_EXPERTS:
        return np.zeros(DIM)
    w1, w3, w2 = (w[expert] for w in weights)
    gate = x_D @ w1
    return (gate / (1 + np.exp(-gate)) * (x_D @ w3)) @ w2


@pytest.mark.parametrize(
    ("num_rows", "copies", "chosen"),
    [(300, 2, None), (7, 1, None), (200, 1, 3), (130, 1, NUM_EXPERTS), (64, 3, None)],
)
def test_each_row_is_what_its_experts_make_of_it(num_rows, copies, chosen):
    x, weights, expert, d_y = arrays(num_rows, copies, chosen=chosen)
    wanted = np.array([[formula(x[i], weights, e) for e in row] for i, row in enumerate(expert)])

    def by_formula(x, weights):
        """The same in JAX, for the gradient: every row by every expert."""
        every = [
            experts.buffered_experts(x[None], Experts(*(w[e : e + 1] for w in weights)))[0]
            for e in range(NUM_EXPERTS)
        ]
        all_ARD = jnp.stack([*every, jnp.zeros_like(x)], axis=1)
        return jnp.take_along_axis(all_ARD, expert[:, :, None], axis=1)

    with jax.enable_x64(True):
        args = jax.tree.map(jnp.asarray, (x, weights))

        @jax.jit
        def both(args, d_y):
            found, pull = jax.vjp(lambda x, w: experts.chosen_experts(x, expert, w)[0], *args)
            return found, pull(d_y), jax.vjp(by_formula, *args)[1](d_y)

        found, gradients, expected = both(args, jnp.asarray(d_y))
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_gradients_of_both_uses_of_the_weights_are_summed():
    x, weights, expert, d_y = arrays(50, 1)
    args = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (x, weights))

    def threaded(x, w):
        y, w = experts.chosen_experts(x, expert, w, max_served=50)
        return y, experts.buffered_experts(x.reshape(NUM_EXPERTS, 10, DIM), w)

    def apart(x, w):
        y, _ = experts.chosen_experts(x, expert, w)
        return y, experts.buffered_experts(x.reshape(NUM_EXPERTS, 10, DIM), w)

    d_out = (jnp.float32(d_y), jnp.float32(d_y.reshape(NUM_EXPERTS, 10, DIM)))
    found, wanted = jax.jit(
        lambda args, d_out: [jax.vjp(f, *args)[1](d_out) for f in (threaded, apart)]
    )(args, d_out)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_other_platforms_products_say_the_same(monkeypatch):
    x, weights, expert, _ = arrays(100, 2)
    args = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (x, weights))

    def found():
        return jax.jit(lambda x, w: experts.chosen_experts(x, expert, w)[0])(*args)

    blockwise = found()
    monkeypatch.setattr(experts, "platform", lambda: "gpu")
    np.testing.assert_allclose(found(), blockwise, atol=1e-5)


def test_rows_are_taken_and_their_gradients_brought_back():
    x = jnp.arange(8.0).reshape(4, 2)
    index, inverse = jnp.array([2, 0, 4, 2]), jnp.array([[1, 4], [4, 4], [0, 3], [4, 4]])
    y, pull = jax.vjp(lambda x: take_rows(x, index, inverse), x)
    np.testing.assert_array_equal(y, [[4, 5], [0, 1], [0, 0], [4, 5]])
    plain = jax.vjp(lambda x: jnp.take(x, index, axis=0, mode="fill", fill_value=0), x)[1]
    d_y = jnp.arange(8.0).reshape(4, 2) + 1
    np.testing.assert_array_equal(pull(d_y)[0], plain(d_y)[0])


def test_rows_are_combined_and_their_gradients_brought_back():
    rng = np.random.default_rng(0)
    # Row 3 is taken by nobody; the second place of row 1, and both of row 2, are empty.
    index, inverse = jnp.array([[2, 0], [4, 5], [5, 5], [1, 5]]), jnp.array([1, 6, 0, 8, 2])
    x, d_y = (jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for n in (5, 4))
    weight = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)

    def plain(x, weight):
        rows = jnp.take(x, index, axis=0, mode="fill", fill_value=0)
        return jnp.einsum("brd,br->bd", rows, weight)

    found, pull = jax.vjp(lambda x, w: combine_rows(x, w, index, inverse), x, weight)
    wanted, plain_pull = jax.vjp(plain, x, weight)
    for a, b in zip((found, *pull(d_y)), (wanted, *plain_pull(d_y)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
