"""Cross-entropy in chunks against float64 NumPy: values, gradients, padding, memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.ops.losses import linear_cross_entropy
from tests.numerics import internlm2_numpy as formulas

BATCH, LENGTH, DIM, VOCAB, PADDED = 2, 7, 6, 11, 16
Z_LOSS = 0.1


def arrays(dtype):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(BATCH, LENGTH, DIM)).astype(dtype)
    kernel = rng.normal(size=(DIM, PADDED)).astype(dtype)
    # Padding that would win every comparison if it were looked at.
    kernel[:, VOCAB:] *= 50
    targets = rng.integers(VOCAB, size=(BATCH, LENGTH)).astype(np.int32)
    weights = rng.integers(3, size=(BATCH, LENGTH)).astype(dtype)
    return hidden, kernel, targets, weights


def formula(hidden, kernel, targets, weights):
    return formulas.loss(hidden @ kernel[:, :VOCAB], targets, weights, Z_LOSS)


# 4 tokens are 2 positions of each row, so that the last chunk is short; 100 are one chunk.
@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_loss_scores_and_gradients(chunk_tokens):
    hidden, kernel, targets, weights = arrays(np.float64)
    expected, nll = formula(hidden, kernel, targets, weights)
    args = hidden.astype(np.float32), kernel.astype(np.float32), targets, weights

    @jax.jit
    def run(hidden, kernel, targets, weights):
        def loss(hidden, kernel, weights):
            return linear_cross_entropy(
                hidden,
                kernel,
                targets,
                weights,
                vocab_size=VOCAB,
                chunk_tokens=chunk_tokens,
                z_loss=Z_LOSS,
            )

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(hidden, kernel, weights)

    (loss, aux), gradients = run(*args)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(aux["nll_BT"], nll, rtol=1e-5, atol=1e-5)
    best = (hidden @ kernel[:, :VOCAB]).argmax(-1)
    np.testing.assert_array_equal(aux["correct_BT"], best == targets)
    assert not np.asarray(gradients[1])[:, VOCAB:].any()
    for i, (at, gradient) in enumerate(zip((0, 1, 3), gradients, strict=True)):
        values = [hidden, kernel, targets, weights]
        direction = np.random.default_rng(i).normal(size=values[at].shape)
        directions = [np.zeros_like(x) for x in values]
        directions[at] = direction

        def scalar(h, k, t, w):
            return formula(h, k, targets, w)[0]

        slope = formulas.slope(scalar, values, directions)
        assert float((np.float64(gradient) * direction).sum()) == pytest.approx(slope, rel=1e-5)


def test_the_gradient_is_scaled_by_what_is_done_with_the_loss():
    hidden, kernel, targets, weights = map(jnp.asarray, arrays(np.float32))

    def loss(hidden, factor):
        return factor * linear_cross_entropy(hidden, kernel, targets, weights, vocab_size=VOCAB)[0]

    gradient = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(gradient(hidden, 3.0), 3 * gradient(hidden, 1.0), rtol=1e-6)


def test_tokens_of_weight_zero_do_not_matter():
    hidden, kernel, targets, weights = arrays(np.float32)
    other = hidden.copy()
    other[weights == 0] = 7.0

    @jax.jit
    @jax.value_and_grad
    def loss(kernel, hidden):
        return linear_cross_entropy(hidden, kernel, targets, weights, vocab_size=VOCAB)[0]

    assert (weights == 0).any()
    for found, wanted in zip(loss(kernel, hidden), loss(kernel, other), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("with_gradient", [True, False])
def test_no_array_of_tokens_by_vocabulary_is_ever_made(with_gradient):
    """Read from the compiled program, at the size of the published vocabulary."""
    tokens, dim, vocab, chunk = 4096, 32, 92544, 512
    shapes = (
        jax.ShapeDtypeStruct((2, tokens // 2, dim), jnp.float32),
        jax.ShapeDtypeStruct((dim, vocab), jnp.float32),
        jax.ShapeDtypeStruct((2, tokens // 2), jnp.int32),
        jax.ShapeDtypeStruct((2, tokens // 2), jnp.float32),
    )

    def loss(hidden, kernel, targets, weights):
        return linear_cross_entropy(
            hidden, kernel, targets, weights, vocab_size=vocab, chunk_tokens=chunk
        )[0]

    function = jax.value_and_grad(loss, (0, 1)) if with_gradient else loss
    text = jax.jit(function).lower(*shapes).compile().as_text()
    with_vocab = {
        tuple(map(int, dims.split(",")))
        for dims in re.findall(r"\[([\d,]+)\]", text)
        if str(vocab) in dims.split(",")
    }
    rows = [int(np.prod(dims)) // vocab for dims in with_vocab]
    assert max(rows) == chunk
