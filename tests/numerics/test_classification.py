"""The classifier's loss against float64 NumPy; padding and neighbours leave no trace."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.models.config import MoEConfig, TransformerConfig
from t5x_style.objectives.classification import Classification
from t5x_style.ops.classification import binary_nll, segment_means
from t5x_style.ops.routers import TopK
from tests.fresh import fresh_params
from tests.numerics import internlm2_numpy as formulas

CONFIG = TransformerConfig(
    vocab_size=29,
    num_layers=2,
    embed_dim=24,
    num_query_heads=6,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=40,
    rope_base=500.0,
    causal=False,
    vocab_multiple=16,
    scan_layers=False,
    # Large enough that every part of the model matters to the result.
    init_std=0.3,
)
SIZES = ((7, 3, 8), (1, 12))  # tokens of the texts of each row, the rest padding
LENGTH = 20


def batch(sizes=SIZES, length=LENGTH):
    """Rows of texts whose ids follow from the text's number alone."""
    shape = (len(sizes), length)
    names = ("inputs", "positions", "segment_ids", "labels")
    found = {name: np.zeros(shape, np.int32) for name in names}
    found["loss_weights"] = np.zeros(shape, np.float32)
    for row, of_row in enumerate(sizes):
        at = 0
        for segment, size in enumerate(of_row, start=1):
            rng = np.random.default_rng(size)
            here = slice(at, at + size)
            found["inputs"][row, here] = rng.integers(CONFIG.vocab_size, size=size)
            found["positions"][row, here] = np.arange(size)
            found["segment_ids"][row, here] = segment
            found["labels"][row, at] = size % 2
            found["loss_weights"][row, at] = rng.uniform(0.2, 2)
            at += size
    return found


@functools.cache
def params():
    """Norms' scales and the bias are drawn too, as ones and zeros would hide a forgotten one."""
    drawn = fresh_params(Classification(CONFIG))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype) if x.ndim < 2 else x, drawn
    )


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(objective, params, b):
    def loss(params):
        loss_sum, weight_sum, metrics = objective.loss(params, b, jax.random.key(0))
        return loss_sum, (weight_sum, metrics)

    return jax.value_and_grad(loss, has_aux=True)(params)


def numpy_logits(tree, b, pooling):
    """One logit for each text, row by row."""
    segments = b["segment_ids"]
    hidden = formulas.hidden(tree["encoder"], CONFIG, b["inputs"], b["positions"], segments)
    logits = []
    for row, of_row in enumerate(segments):
        for segment in range(1, of_row.max() + 1):
            tokens = hidden[row, of_row == segment]
            pooled = tokens.mean(axis=0) if pooling == "mean" else tokens[0]
            logits.append(pooled @ tree["head"]["kernel"] + tree["head"]["bias"])
    return np.array(logits)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_loss_metrics_and_gradient_by_the_formula(pooling):
    b, tree = batch(), params()
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
    is_text = (b["positions"] == 0) & (b["segment_ids"] > 0)
    labels, weights = b["labels"][is_text], b["loss_weights"][is_text].astype(np.float64)

    def formula(tree):
        p = 1 / (1 + np.exp(-numpy_logits(tree, b, pooling)))
        return -(weights * np.log(np.where(labels, p, 1 - p))).sum()

    (loss, (weight_sum, metrics)), gradient = loss_and_gradient(
        Classification(CONFIG, pooling), tree, b
    )
    assert float(loss) == pytest.approx(formula(exact), rel=1e-5)
    assert float(weight_sum) == pytest.approx(weights.sum(), rel=1e-6)
    said = numpy_logits(exact, b, pooling) >= 0
    counts = {
        "accuracy": ((said == labels).sum(), 5),
        "precision": ((said & (labels > 0)).sum(), said.sum()),
        "recall": ((said & (labels > 0)).sum(), labels.sum()),
        "filled_slots": (31, 40),
        "keys_per_token": (sum(n * n for of_row in SIZES for n in of_row), 31),
    }
    assert {name: tuple(map(float, metrics[name])) for name in counts} == counts
    assert float(metrics["loss"][0]) == float(loss)

    rng = np.random.default_rng(2)
    for name in ("embedding", "wqkv", "wo", "w1", "w2", "w3", "scale", "kernel", "bias"):
        directions = jax.tree_util.tree_map_with_path(
            lambda path, x: rng.normal(size=x.shape) * (path[-1].key == name),  # noqa: B023
            exact,
        )
        slope = formulas.slope(formula, (exact,), (directions,))
        products = jax.tree.map(lambda g, d: (np.float64(g) * d).sum(), gradient, directions)
        assert sum(jax.tree.leaves(products)) == pytest.approx(slope, rel=1e-4), name


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_packing_and_padding_change_nothing(pooling):
    objective, tree = Classification(CONFIG, pooling), params()
    alone = tuple((size,) for of_row in SIZES for size in of_row)
    (loss, (_, metrics)), gradient = loss_and_gradient(objective, tree, batch())
    (other, (_, others)), wanted = loss_and_gradient(objective, tree, batch((*alone, ()), 12))
    assert float(loss) == pytest.approx(float(other), rel=1e-6)
    for name in ("loss", "accuracy", "precision", "recall", "keys_per_token"):
        assert [float(x) for x in metrics[name]] == pytest.approx([float(x) for x in others[name]])
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)

    # What padding holds is not read.
    b = batch()
    is_padding = b["segment_ids"] == 0
    for name in ("inputs", "positions", "labels", "loss_weights"):
        b[name] = np.where(is_padding, 3, b[name]).astype(b[name].dtype)
    (same, _), gradient_of_same = loss_and_gradient(objective, tree, b)
    assert float(same) == float(loss)
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_of_same), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_nll_of_large_logits_is_finite_and_exact():
    logits = np.array([-200.0, -2.0, 0.0, 3.0, 200.0])
    narrow = jnp.asarray(logits, jnp.float32)
    for label, sign in ((0, 1), (1, -1)):
        found = binary_nll(narrow, jnp.full(5, label))
        np.testing.assert_allclose(found, np.logaddexp(0, sign * logits), rtol=1e-6, atol=1e-30)
    slope = jax.vmap(jax.grad(binary_nll))(narrow, jnp.ones(5))
    np.testing.assert_allclose(slope, 1 / (1 + np.exp(-logits)) - 1, rtol=1e-5, atol=1e-30)


def test_means_are_those_of_each_segment():
    values = np.array([[1, 2, 4, 8, 16, 32]], np.float32)
    segments = np.array([[1, 1, 2, 2, 2, 0]])
    counted = np.array([[True, True, True, False, True, False]])
    found = segment_means(values, counted, segments)
    np.testing.assert_array_equal(found, [[1.5, 1.5, 10, 10, 10, 0]])


def test_what_is_no_encoder_is_refused():
    with pytest.raises(ValueError, match="causal = True"):
        Classification(dataclasses.replace(CONFIG, causal=True))
    with pytest.raises(ValueError, match="moe"):
        Classification(dataclasses.replace(CONFIG, moe=MoEConfig(4, TopK())))
    with pytest.raises(ValueError, match=r"pooling = 'last'"):
        Classification(CONFIG, "last")


def test_operations_are_those_of_the_weights_that_tokens_meet():
    tree = params()
    multiplied = sum(
        x.size
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if path[-1].key not in ("embedding", "scale", "bias")
    )
    attention = 3 * 4 * CONFIG.num_layers * CONFIG.num_query_heads * CONFIG.head_dim * 10
    found = Classification(CONFIG).flops_per_token(LENGTH, 10.0)
    assert found == pytest.approx(6 * multiplied + attention)
