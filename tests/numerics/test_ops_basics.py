"""Norm, rotary embedding, projection and feed-forward against float64 NumPy, values and slopes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.ops import feed_forward, norms, projection, rotary
from tests.numerics import internlm2_numpy as formulas

LENGTH, DIM, INNER = 5, 12, 20


@pytest.fixture
def normal():
    """Draws normal numbers of a shape, the same ones in each test."""
    rng = np.random.default_rng(0)
    return lambda *shape: rng.normal(size=shape)


def assert_gradients_have_the_slope(function, formula, args, d_out, tolerance):
    """Compares <gradient, direction> in fp32 with the central difference of the formula."""
    _, pull = jax.vjp(function, *(jnp.asarray(x, jnp.float32) for x in args))
    gradients = pull(jnp.asarray(d_out, jnp.float32))
    for i, gradient in enumerate(gradients):
        directions = [np.zeros_like(x) for x in args]
        directions[i] = np.random.default_rng(i).normal(size=args[i].shape)
        slope = formulas.slope(lambda *a: float((formula(*a) * d_out).sum()), args, directions)
        found = float((np.asarray(gradient, np.float64) * directions[i]).sum())
        assert found == pytest.approx(slope, rel=tolerance, abs=tolerance)


def test_rms_norm(normal):
    x, scale, d_out = normal(2, LENGTH, DIM), normal(DIM), normal(2, LENGTH, DIM)
    found = norms.rms_norm(jnp.float32(x), jnp.float32(scale), 1e-2)
    np.testing.assert_allclose(found, formulas.rms_norm(x, scale, 1e-2), rtol=1e-5, atol=1e-6)
    assert_gradients_have_the_slope(
        lambda x, scale: norms.rms_norm(x, scale, 1e-2),
        lambda x, scale: formulas.rms_norm(x, scale, 1e-2),
        (x, scale),
        d_out,
        1e-5,
    )


def test_rms_norm_casts_down_before_the_scale(normal):
    x = jnp.asarray(normal(DIM), jnp.bfloat16)
    scale = jnp.asarray(normal(DIM), jnp.float32)
    unit = norms.rms_norm(x, jnp.ones(DIM), 1e-5)
    assert unit.dtype == jnp.bfloat16
    expected = unit * scale.astype(jnp.bfloat16)
    np.testing.assert_array_equal(norms.rms_norm(x, scale, 1e-5), expected)


def test_rotary(normal):
    x, positions = normal(2, LENGTH, 3, 8), np.array([[0, 1, 2, 3, 4], [0, 1, 0, 7, 900]])
    tables = rotary.rotary_tables(jnp.asarray(positions), head_dim=8, base=10_000.0)
    found = rotary.apply_rotary(jnp.float32(x), tables)
    expected = np.stack([formulas.rotate(x[b], positions[b], 10_000.0) for b in range(2)])
    # 900 radians in fp32 are known to 3e-5.
    np.testing.assert_allclose(found[:, :4], expected[:, :4], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert tables.cos_BTR.dtype == jnp.float32


def test_rotary_scores_depend_on_distance_alone(normal):
    q, k = (jnp.asarray(normal(1, 1, 1, 8), jnp.float32) for _ in range(2))

    def score(q_position, k_position):
        rotated = [
            rotary.apply_rotary(x, rotary.rotary_tables(jnp.array([[at]]), head_dim=8, base=100.0))
            for x, at in ((q, q_position), (k, k_position))
        ]
        return float(jnp.vdot(*rotated))

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-5)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)


def test_dynamic_ntk_base():
    settings = {"trained_length": 32768, "factor": 2.0}
    assert rotary.dynamic_ntk_base(1e6, 128, length=32768, **settings) == 1e6
    # Worked by hand: (2 * 4 - 1)^(128/126) and (2 * 200000/32768 - 1)^(128/126).
    assert rotary.dynamic_ntk_base(1e6, 128, length=131072, **settings) == pytest.approx(
        7.2196e6, rel=1e-4
    )
    assert rotary.dynamic_ntk_base(1e6, 128, length=200_000, **settings) == pytest.approx(
        1.1646e7, rel=1e-4
    )


@pytest.mark.parametrize("num_inputs", [1, 2])
def test_projection(num_inputs, normal):
    inputs = (4, 3)[:num_inputs]
    x, kernel = normal(2, LENGTH, *inputs), normal(*inputs, 2, 5)
    letters = "ab"[:num_inputs]
    spec = f"xt{letters},{letters}op->xtop"
    axes = (*("heads", "head_dim")[:num_inputs], "qkv", "head_dim")

    def project(x, kernel):
        return projection.project(x, kernel, axes, num_inputs=num_inputs)

    expected = np.einsum(spec, x, kernel)
    found = project(jnp.float32(x), jnp.float32(kernel))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert_gradients_have_the_slope(
        project, lambda x, k: np.einsum(spec, x, k), (x, kernel), normal(*expected.shape), 1e-5
    )


def test_projection_sums_the_gradient_of_a_wide_weight_in_its_own_dtype():
    x = jnp.ones((1, 1024, 1), jnp.bfloat16)
    kernel = jnp.ones((1, 1), jnp.float32)
    d_kernel = jax.grad(lambda k: projection.project(x, k, ("embed", "mlp")).sum())(kernel)
    assert d_kernel.dtype == jnp.float32
    assert float(d_kernel[0, 0]) == 1024
    # One more is lost in bfloat16, which counts by eights there.
    x = jnp.ones((1, 1025, 1), jnp.bfloat16)
    d_kernel = jax.grad(lambda k: projection.project(x, k, ("embed", "mlp")).sum())(kernel)
    assert float(d_kernel[0, 0]) == 1025


def test_swiglu(normal):
    args = (
        normal(2, LENGTH, DIM),
        *(normal(*s) for s in ((DIM, INNER), (DIM, INNER), (INNER, DIM))),
    )
    found = feed_forward.swiglu(*map(jnp.float32, args))
    np.testing.assert_allclose(found, formulas.swiglu(*args), rtol=1e-5, atol=1e-4)
    assert_gradients_have_the_slope(
        feed_forward.swiglu, formulas.swiglu, args, normal(2, LENGTH, DIM), 1e-5
    )


def test_swiglu_keeps_its_input_and_two_inner_products_only():
    x = jnp.ones((1, LENGTH, DIM))
    weights = [jnp.ones(s) for s in ((DIM, INNER), (DIM, INNER), (INNER, DIM))]
    _, pull = jax.vjp(feed_forward.swiglu, x, *weights)
    kept = sorted(leaf.shape for leaf in jax.tree.leaves(pull))
    weight_shapes = [w.shape for w in weights]
    assert kept == sorted([x.shape, *weight_shapes, *[(1, LENGTH, INNER)] * 2])
