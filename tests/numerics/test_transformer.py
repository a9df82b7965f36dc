"""The whole model against float64 NumPy, and what must not change its results."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.models import transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.ops.losses import linear_cross_entropy
from t5x_style.parallel.remat import POLICIES
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
    vocab_multiple=16,
    scan_layers=False,
    # Large enough that every part of the model matters to the result.
    init_std=0.3,
)
BATCH, LENGTH = 2, 21
change = functools.partial(dataclasses.replace, CONFIG)


@functools.partial(jax.jit, static_argnums=0)
def initial(config):
    return fresh_params(config)


@functools.cache
def params(config=CONFIG):
    """Unrolled params; norms' scales are drawn too, as ones would hide a forgotten factor."""
    drawn = initial(config)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype) if x.ndim == 1 else x, drawn
    )


def batch():
    """Packed rows: the first of three documents, the second of one and padding."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(CONFIG.vocab_size, size=(BATCH, LENGTH)).astype(np.int32)
    segments = np.stack([np.repeat([1, 2, 3], [8, 3, 10]), np.repeat([1, 0], [16, 5])])
    positions = np.stack([np.r_[0:8, 0:3, 0:10], np.r_[0:16, 0:5]])
    targets = np.roll(tokens, -1, axis=1)
    weights = (segments > 0).astype(np.float32)
    return {
        "tokens": tokens,
        "positions": positions.astype(np.int32),
        "segments": segments.astype(np.int32),
        "targets": targets,
        "weights": weights,
    }


@functools.partial(jax.jit, static_argnames="config")
def hidden_of(params, tokens, positions=None, segments=None, *, config):
    return transformer.Transformer(config).apply(
        {"params": params}, tokens, positions_BT=positions, segment_ids_BT=segments
    )


def loss_of(params, config, b):
    hidden = transformer.Transformer(config).apply(
        {"params": params}, b["tokens"], positions_BT=b["positions"], segment_ids_BT=b["segments"]
    )
    kernel = transformer.head_kernel(params, config)
    return linear_cross_entropy(
        hidden,
        kernel,
        b["targets"],
        b["weights"],
        vocab_size=config.vocab_size,
        chunk_tokens=16,
        z_loss=1e-2,
    )[0]


loss_and_gradient = jax.jit(jax.value_and_grad(loss_of), static_argnums=1)


def numpy_logits(config, tree, b):
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
    hidden = formulas.hidden(tree, config, b["tokens"], b["positions"], b["segments"])
    return formulas.logits(tree, config, hidden)


@pytest.mark.parametrize(
    "config",
    [CONFIG, change(normalized_head=True), change(causal=False)],
    ids=["decoder", "normalized_head", "encoder"],
)
def test_logits_loss_and_gradients(config):
    b, tree = batch(), params()
    hidden = hidden_of(tree, b["tokens"], b["positions"], b["segments"], config=config)
    found = transformer.logits(tree, config, hidden)
    expected = numpy_logits(config, tree, b)
    np.testing.assert_allclose(found[..., : config.vocab_size], expected, rtol=1e-4, atol=1e-4)

    def formula(tree):
        logits = numpy_logits(config, tree, b)
        return formulas.loss(logits, b["targets"], b["weights"], 1e-2)[0]

    loss, gradient = loss_and_gradient(tree, config, b)
    assert float(loss) == pytest.approx(formula(tree), rel=1e-5)
    rng = np.random.default_rng(2)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
    # One direction for each weight's kind, so that a fault in one is not lost among the others.
    for name in ("embedding", "wqkv", "wo", "w1", "w2", "w3", "scale", "kernel"):
        directions = jax.tree_util.tree_map_with_path(
            lambda path, x: rng.normal(size=x.shape) * (path[-1].key == name),  # noqa: B023
            exact,
        )
        slope = formulas.slope(formula, (exact,), (directions,))
        products = jax.tree.map(lambda g, d: (np.float64(g) * d).sum(), gradient, directions)
        assert sum(jax.tree.leaves(products)) == pytest.approx(slope, rel=1e-4), name


def test_ids_of_the_padded_vocabulary_are_never_predicted():
    hidden = 100 * jnp.ones((1, 1, CONFIG.embed_dim))
    tree = params()
    kernel = tree["output"]["kernel"].at[:, CONFIG.vocab_size :].set(9.0)
    found = transformer.logits({**tree, "output": {"kernel": kernel}}, CONFIG, hidden)
    assert found.shape[-1] == CONFIG.padded_vocab_size == 32
    assert (jax.nn.softmax(found)[..., CONFIG.vocab_size :] == 0).all()
    assert (found[..., CONFIG.vocab_size :] < found[..., : CONFIG.vocab_size].min()).all()


def test_normalised_head_has_columns_of_length_one():
    config = change(normalized_head=True)
    kernel = transformer.head_kernel(params(), config)
    np.testing.assert_allclose(jnp.linalg.norm(kernel, axis=0), 1, rtol=1e-6)
    # Columns of padding may be zeros; they stay so and do no harm to the gradient.
    zeros = {"output": {"kernel": jnp.zeros_like(kernel)}}
    gradient = jax.grad(lambda p: transformer.head_kernel(p, config).sum())(zeros)
    assert np.isfinite(gradient["output"]["kernel"]).all()
    assert not transformer.head_kernel(zeros, config).any()


def test_a_packed_document_is_what_it_is_alone():
    b, tree = batch(), params()
    packed = hidden_of(tree, b["tokens"], b["positions"], b["segments"], config=CONFIG)
    for row, start, stop in ((0, 0, 8), (0, 11, 21), (1, 0, 16)):
        alone = hidden_of(tree, b["tokens"][row : row + 1, start:stop], config=CONFIG)
        np.testing.assert_allclose(packed[row, start:stop], alone[0], rtol=1e-5, atol=1e-5)


def test_padding_is_inert():
    b, tree = batch(), params()
    other = {**b, "tokens": np.where(b["segments"] == 0, 5, b["tokens"])}
    assert (other["tokens"] != b["tokens"]).any()
    first, second = (loss_and_gradient(tree, CONFIG, x) for x in (b, other))
    assert float(first[0]) == float(second[0])
    for x, y in zip(jax.tree.leaves(first[1]), jax.tree.leaves(second[1]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_scanned_layers_are_the_unrolled_ones():
    b, tree = batch(), params()
    stacked = transformer.stack_layers(tree, CONFIG)
    assert jax.tree.structure(stacked) == jax.tree.structure(initial(change(scan_layers=True)))
    loss, gradient = loss_and_gradient(tree, CONFIG, b)
    scanned_loss, scanned_gradient = loss_and_gradient(stacked, change(scan_layers=True), b)
    assert float(loss) == pytest.approx(float(scanned_loss), rel=1e-6)
    back = transformer.unstack_layers(scanned_gradient, CONFIG)
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(back), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_stacking_and_taking_apart_are_inverse():
    tree = params()
    back = transformer.unstack_layers(transformer.stack_layers(tree, CONFIG), CONFIG)
    assert jax.tree.structure(back) == jax.tree.structure(dict(tree))
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [name for name in POLICIES if name != "none"])
def test_rematerialisation_changes_nothing(remat):
    b, tree = batch(), transformer.stack_layers(params(), CONFIG)
    loss, gradient = loss_and_gradient(tree, change(scan_layers=True), b)
    again, gradient_again = loss_and_gradient(tree, change(scan_layers=True, remat=remat), b)
    assert float(loss) == pytest.approx(float(again), rel=1e-6)
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_again), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_policies_keep_what_they_name():
    """Bytes kept between the passes: less for each policy, and no attention run twice for it."""
    b, tree = batch(), transformer.stack_layers(params(), CONFIG)

    def kept_and_exponentials(remat):
        config = change(scan_layers=True, remat=remat)

        def residuals(tree):
            return jax.vjp(lambda tree: loss_of(tree, config, b), tree)[1]

        sizes = [x.size for x in jax.tree.leaves(jax.eval_shape(residuals, tree)) if x.ndim > 2]
        jaxpr = str(jax.make_jaxpr(jax.grad(loss_of), static_argnums=1)(tree, config, b))
        return sum(sizes), len(re.findall(r"= exp\b", jaxpr))

    kept = {name: kept_and_exponentials(name) for name in POLICIES}
    sizes = [kept[name][0] for name in ("none", "attention_mlp", "attention", "full")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    # Attention takes two exponentials forward (of scores, and of their shift) and one backward, the
    # loss two.
    assert kept["none"][1] == kept["attention"][1] == kept["attention_mlp"][1] == 3 + 2
    assert kept["full"][1] == 2 + 3 + 2


@pytest.mark.slow
def test_bfloat16_with_float32_weights():
    b, tree = batch(), transformer.stack_layers(params(), CONFIG)
    config = change(scan_layers=True, dtype="bfloat16")
    hidden = hidden_of(tree, b["tokens"], b["positions"], b["segments"], config=config)
    assert hidden.dtype == jnp.bfloat16
    exact_loss, exact = loss_and_gradient(tree, change(scan_layers=True), b)
    loss, gradient = loss_and_gradient(tree, config, b)
    assert float(loss) == pytest.approx(float(exact_loss), rel=2e-2)
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True):
        assert x.dtype == jnp.float32
        assert float(jnp.linalg.norm(x - y)) < 0.1 * float(jnp.linalg.norm(y))


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [True, False])
def test_initial_values(scan_layers):
    config = change(scan_layers=scan_layers, num_layers=2, embed_dim=64, mlp_dim=256, init_std=0.02)
    tree = initial(config)
    tree = transformer.unstack_layers(tree, config) if scan_layers else tree
    for i in range(2):
        layer = tree[f"layers_{i}"]
        deep = 0.02 / np.sqrt(2 * (i + 1))
        for part, name, std in (
            ("attention", "wqkv", 0.02),
            ("attention", "wo", deep),
            ("feed_forward", "w1", 0.02),
            ("feed_forward", "w3", 0.02),
            ("feed_forward", "w2", deep),
        ):
            assert float(layer[part][name].std()) == pytest.approx(std, rel=0.05), (i, name)
        assert (layer["ffn_norm"]["scale"] == 1).all()
    assert float(tree["output"]["kernel"].std()) == pytest.approx(0.02, rel=0.1)
    assert float(tree["tok_embeddings"]["embedding"].std()) == pytest.approx(0.02, rel=0.1)
    assert not np.array_equal(
        tree["layers_0"]["feed_forward"]["w1"], tree["layers_1"]["feed_forward"]["w1"]
    )


def test_dynamic_ntk_changes_the_base_beyond_the_trained_window_only():
    plain = change(trained_length=LENGTH)
    stretched = change(trained_length=LENGTH, dynamic_ntk_factor=2.0)
    positions = jnp.arange(LENGTH)[None]
    for x, y in zip(
        transformer.rotary_tables(plain, positions),
        transformer.rotary_tables(stretched, positions),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)
    # Twice the window: base * (2 * 2 - 1)^(8/6), from the whole length, not from what is there yet.
    base = CONFIG.rope_base * 3 ** (8 / 6)
    for x, y in zip(
        transformer.rotary_tables(change(rope_base=base), positions),
        transformer.rotary_tables(stretched, positions, length=2 * LENGTH),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=1e-6)
