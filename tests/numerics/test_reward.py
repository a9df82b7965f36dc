"""The reward model's loss against float64 NumPy; a score is its text's own, wherever it lies."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.models.config import MoEConfig, TransformerConfig
from t5x_style.models.reward import RewardModel
from t5x_style.objectives.reward import Reward
from t5x_style.ops.preferences import PreferenceLoss
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
    vocab_multiple=16,
    scan_layers=False,
    # Large enough that every part of the model matters to the result.
    init_std=0.3,
)
ROWS = ((7, 3, 8), (1, 12))  # lengths of the responses, which also say what they are
PAIRS = ((7, 3), (8, 7), (12, 1), (3, 12))  # better and worse one
LENGTH, PAIRS_PER_ROW = 20, 3


def batch(rows=ROWS, length=LENGTH, pairs=PAIRS, pairs_per_row=PAIRS_PER_ROW, padding=0):
    """Rows of responses whose ids follow from their length alone; ids of padding are given."""
    shape = (len(rows), length)
    found = {name: np.zeros(shape, np.int32) for name in ("positions", "segment_ids")}
    found["inputs"] = np.full(shape, padding, np.int32)
    ends = {}
    for row, of_row in enumerate(rows):
        at = 0
        for segment, size in enumerate(of_row, start=1):
            here = slice(at, at + size)
            found["inputs"][row, here] = ids_of(size)
            found["positions"][row, here] = np.arange(size)
            found["segment_ids"][row, here] = segment
            at += size
            ends[size] = (row, at - 1)
    places = (len(rows), pairs_per_row)
    compared, weights = np.zeros((2, len(rows) * pairs_per_row, 2), np.int32), np.zeros(places)
    for at, (better, worse) in enumerate(pairs):
        compared[:, at] = ends[better], ends[worse]
        weights.flat[at] = 0.5 + at
    found["chosen"], found["rejected"] = compared.reshape(2, *places, 2)
    found["pair_weights"] = weights.astype(np.float32)
    return found


def ids_of(size):
    return np.random.default_rng(size).integers(CONFIG.vocab_size, size=size)


@functools.cache
def params():
    """Norms' scales are drawn too, as ones would hide a forgotten one."""
    drawn = fresh_params(Reward(CONFIG, head_init_std=0.3))
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


def numpy_score(tree, size):
    """Of a response alone."""
    ids = ids_of(size)[None]
    ones = np.ones_like(ids)
    hidden = formulas.hidden(tree["backbone"], CONFIG, ids, np.arange(size)[None], ones)
    return hidden[0, -1] @ tree["head"]["kernel"]


def test_loss_metrics_and_gradient_by_the_formula():
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params())
    # Scores of about 0.1, and of some units, are both on the curved parts of the loss.
    exact["head"]["kernel"] = exact["head"]["kernel"] * 0.3
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), exact)
    weights = 0.5 + np.arange(len(PAIRS))

    def scores(tree):
        return {size: numpy_score(tree, size) for of_row in ROWS for size in of_row}

    def formula(tree):
        of = scores(tree)
        better, worse = (np.array([of[pair[side]] for pair in PAIRS]) for side in (0, 1))
        p = 1 / (1 + np.exp(worse - better))
        ranking = -((1 - 2 * np.maximum(0, p - 0.5)) ** 2) * np.log(p)
        barrier = -(np.log(25 - better**2) + np.log(25 - worse**2)) / 2
        return (weights * (ranking + 0.02 * barrier)).sum()

    found = scores(exact)
    assert max(map(abs, found.values())) < 4.9
    (loss, (weight_sum, metrics)), gradient = loss_and_gradient(
        Reward(CONFIG, pairs_per_row=PAIRS_PER_ROW), tree, batch()
    )
    assert float(loss) == pytest.approx(formula(exact), rel=1e-4)
    assert float(weight_sum) == weights.sum()
    wanted = {
        "accuracy": (sum(found[a] > found[b] for a, b in PAIRS), 4),
        "margin": (sum(found[a] - found[b] for a, b in PAIRS), 4),
        "score": (sum(found.values()), 5),
        "near_bound": (sum(abs(x) > 4.5 for x in found.values()), 5),
        "filled_slots": (31, 40),
        "keys_per_token": (sum(n * (n + 1) / 2 for of_row in ROWS for n in of_row), 31),
    }
    for name, pair in wanted.items():
        assert tuple(map(float, metrics[name])) == pytest.approx(pair, rel=1e-4), name
    parts = float(metrics["ranking_loss"][0]) + 0.02 * float(metrics["barrier"][0])
    assert parts == pytest.approx(float(loss), rel=1e-5)

    rng = np.random.default_rng(2)
    for name in ("embedding", "wqkv", "wo", "w1", "w2", "w3", "scale", "kernel"):
        directions = jax.tree_util.tree_map_with_path(
            lambda path, x: rng.normal(size=x.shape) * (path[-1].key == name),  # noqa: B023
            exact,
        )
        slope = formulas.slope(formula, (exact,), (directions,))
        products = jax.tree.map(lambda g, d: (np.float64(g) * d).sum(), gradient, directions)
        assert sum(jax.tree.leaves(products)) == pytest.approx(slope, rel=1e-3), name


def test_ties_are_half_right_and_scores_near_the_bound_are_counted():
    tree = params() | {"head": {"kernel": jnp.zeros(CONFIG.embed_dim)}}
    _, (_, metrics) = loss_and_gradient(Reward(CONFIG, pairs_per_row=3), tree, batch())[0]
    assert [float(x) for x in metrics["accuracy"]] == [2.0, 4.0]
    assert float(metrics["near_bound"][0]) == 0
    tree = params() | {"head": {"kernel": 100 * params()["head"]["kernel"]}}
    (loss, (_, metrics)), gradient = loss_and_gradient(
        Reward(CONFIG, pairs_per_row=3), tree, batch()
    )
    assert float(metrics["near_bound"][0]) == 5
    assert np.isfinite(float(loss))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    clamped = Reward(CONFIG, PreferenceLoss(outside="clamp", gamma=0), pairs_per_row=3)
    assert float(clamped.loss(tree, batch(), jax.random.key(0))[0]) != float(loss)


def test_packing_padding_and_the_order_of_pairs_change_nothing():
    objective = Reward(CONFIG, pairs_per_row=PAIRS_PER_ROW)
    (loss, (_, metrics)), gradient = loss_and_gradient(objective, params(), batch())
    alone = tuple((size,) for of_row in ROWS for size in of_row)
    unpacked = Reward(CONFIG, pairs_per_row=1)
    (other, (_, others)), wanted = loss_and_gradient(
        unpacked, params(), batch((*alone, ()), 12, pairs_per_row=1)
    )
    assert float(loss) == pytest.approx(float(other), rel=1e-5)
    for name in ("loss", "ranking_loss", "barrier", "accuracy", "margin", "score"):
        assert [float(x) for x in metrics[name]] == pytest.approx(
            [float(x) for x in others[name]], rel=1e-4
        )
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-4)

    # What padding holds is not read, nor is what places without a pair point at.
    b = batch(padding=3)
    unused = b["pair_weights"] == 0
    b["chosen"][unused] = (1, 19)
    (same, _), gradient_of_same = loss_and_gradient(objective, params(), b)
    assert float(same) == float(loss)
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_of_same), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_swapped_pair_has_the_opposite_margin():
    objective = Reward(CONFIG, pairs_per_row=PAIRS_PER_ROW)
    swapped = batch()
    swapped["chosen"], swapped["rejected"] = swapped["rejected"], swapped["chosen"]
    one, other = (objective.loss(params(), b, jax.random.key(0))[2] for b in (batch(), swapped))
    assert float(one["margin"][0]) == pytest.approx(-float(other["margin"][0]), rel=1e-5)
    assert float(one["accuracy"][0]) + float(other["accuracy"][0]) == 4


def test_a_fresh_head_scores_nothing_or_little():
    tokens = jnp.asarray(ids_of(12))[None]
    for std, least, most in ((0.0, 0.0, 0.0), (0.01, 1e-3, 0.2)):
        drawn = fresh_params(Reward(CONFIG, head_init_std=std))
        assert set(drawn) == {"backbone", "head"}
        assert "output" not in drawn["backbone"]
        assert drawn["head"]["kernel"].shape == (CONFIG.embed_dim,)
        scores = np.abs(RewardModel(CONFIG).apply({"params": drawn}, tokens))
        assert scores.shape == (1, 12)
        assert least <= scores.max() <= most


def test_what_is_no_reward_model_is_refused():
    with pytest.raises(ValueError, match="causal = False"):
        Reward(dataclasses.replace(CONFIG, causal=False))
    with pytest.raises(ValueError, match="moe"):
        Reward(dataclasses.replace(CONFIG, moe=MoEConfig(4, TopK())))


def test_operations_are_those_of_the_weights_that_tokens_meet():
    multiplied = sum(
        x.size
        for path, x in jax.tree_util.tree_leaves_with_path(params())
        if path[-1].key not in ("embedding", "scale")
    )
    attention = 3 * 4 * CONFIG.num_layers * CONFIG.num_query_heads * CONFIG.head_dim * 10
    assert Reward(CONFIG).flops_per_token(LENGTH, 10.0) == pytest.approx(6 * multiplied + attention)
