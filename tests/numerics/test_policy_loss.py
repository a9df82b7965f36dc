"""The losses of PPO against float64 by the formula: value, gradients, entropy, share of text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.models import transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.models.reward import RewardModel
from t5x_style.objectives import ppo
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.objectives.ppo import Policy, Value, pretrain_part, token_scores
from t5x_style.ops.losses import linear_cross_entropy
from tests.fresh import fresh_params

BATCH, LENGTH, DIM, VOCAB, PADDED = 2, 7, 6, 11, 16
MODEL = TransformerConfig(
    vocab_size=60,
    num_layers=2,
    embed_dim=16,
    num_query_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=32,
    rope_base=100.0,
    vocab_multiple=8,
    init_std=0.3,
    dtype="float64",
    param_dtype="float64",
)
CLIP = 0.2


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def clipped(nll, old, advantage):
    """The surrogate of one token, as the paper's formula reads."""
    ratio = jnp.exp(-nll - old)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)


def literal(hidden, kernel, targets, weights, token_loss, inputs, z_loss=0.0):
    """Whole logits and jax's own derivative: (loss sum, (nll, entropy))."""
    logits = hidden @ kernel[:, :VOCAB]
    log_p = jax.nn.log_softmax(logits, axis=-1)
    nll = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    loss = token_loss(nll, *inputs) if token_loss else nll
    loss += z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
    return jnp.sum(loss * weights), (nll, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1))


def given():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(BATCH, LENGTH, DIM))
    kernel = rng.normal(size=(DIM, PADDED))
    # Padding that would win every comparison if it were looked at.
    kernel[:, VOCAB:] *= 50
    targets = rng.integers(VOCAB, size=(BATCH, LENGTH))
    weights = rng.integers(3, size=(BATCH, LENGTH)) / 2
    weights[0, 2] = weights[1, 5] = 0
    _, (nll, _) = literal(hidden, kernel, targets, weights, None, ())
    # Ratios within the clip range, above and below it, with advantages of both signs.
    change = np.resize([0.05, 0.4, -0.4, 0.1, 0.3, -0.3], (BATCH, LENGTH))
    advantage = rng.uniform(0.5, 2, (BATCH, LENGTH)) * np.resize([1, -1, 1, -1], (BATCH, LENGTH))
    return [jnp.asarray(x) for x in (hidden, kernel, targets, weights, -nll - change, advantage)]


# 4 tokens are 2 positions of each row and 6 are 3, so that the last chunk is short.
@pytest.mark.parametrize("chunk_tokens", [1, 4, 6, 100])
@pytest.mark.parametrize("token_loss", [clipped, None])
def test_a_loss_of_tokens_equals_whole_logits_and_their_derivative(chunk_tokens, token_loss):
    hidden, kernel, targets, weights, old, advantage = given()
    inputs = (old, advantage) if token_loss else ()

    def ours(hidden, kernel, weights):
        return linear_cross_entropy(
            hidden,
            kernel,
            targets,
            weights,
            vocab_size=VOCAB,
            chunk_tokens=chunk_tokens,
            z_loss=0.01,
            token_loss=token_loss,
            token_inputs=inputs,
            with_entropy=True,
        )

    def theirs(hidden, kernel, weights):
        return literal(hidden, kernel, targets, weights, token_loss, inputs, z_loss=0.01)

    (found, scores), gradients = jax.jit(jax.value_and_grad(ours, (0, 1, 2), has_aux=True))(
        hidden, kernel, weights
    )
    (wanted, (nll, entropy)), of_whole = jax.value_and_grad(theirs, (0, 1, 2), has_aux=True)(
        hidden, kernel, weights
    )
    assert float(found) == pytest.approx(float(wanted), rel=1e-13)
    np.testing.assert_allclose(scores["nll_BT"], nll, atol=1e-13)
    np.testing.assert_allclose(scores["entropy_BT"], entropy, atol=1e-13)
    for gradient, of_all in zip(gradients, of_whole, strict=True):
        np.testing.assert_allclose(gradient, of_all, atol=1e-12)
    # Without a gradient the pass over the chunks is another one.
    np.testing.assert_allclose(jax.jit(ours)(hidden, kernel, weights)[0], wanted, rtol=1e-13)


def test_no_gradient_flows_to_what_a_token_loss_reads_beside():
    hidden, kernel, targets, weights, old, advantage = given()

    def loss(old, advantage):
        return linear_cross_entropy(
            hidden,
            kernel,
            targets,
            weights,
            vocab_size=VOCAB,
            token_loss=clipped,
            token_inputs=(old, advantage),
        )[0]

    for gradient in jax.grad(loss, (0, 1))(old, advantage):
        assert not np.asarray(gradient).any()


def test_entropy_is_that_of_the_ids_in_use_and_of_sure_and_unsure_tokens():
    hidden = jnp.zeros((1, 2, DIM)).at[0, 1, 0].set(1.0)
    kernel = jnp.zeros((DIM, PADDED)).at[0, 3].set(2000.0)
    _, scores = linear_cross_entropy(
        hidden,
        kernel,
        jnp.full((1, 2), 3),
        jnp.ones((1, 2)),
        vocab_size=VOCAB,
        with_entropy=True,
    )
    np.testing.assert_allclose(scores["entropy_BT"], [[np.log(VOCAB), 0]], atol=1e-13)


def rows(seed, num=3, length=10):
    rng = np.random.default_rng(seed)
    batch = {
        "inputs": rng.integers(60, size=(num, length)),
        "targets": rng.integers(60, size=(num, length)),
        "positions": np.broadcast_to(np.arange(length), (num, length)),
        "segment_ids": np.ones((num, length), np.int32),
        "mask": (np.arange(length) >= rng.integers(1, 6, (num, 1))).astype(float),
    }
    return {name: jnp.asarray(x) for name, x in batch.items()}


def log_probs(params, batch, temperature):
    """[B, T, V], from whole logits."""
    hidden = transformer.Transformer(MODEL).apply(
        {"params": params}, batch["inputs"], segment_ids_BT=batch["segment_ids"]
    )
    return jax.nn.log_softmax(
        hidden @ params["output"]["kernel"][:, : MODEL.vocab_size] / temperature
    )


def of_targets(values_BTV, batch):
    return jnp.take_along_axis(values_BTV, batch["targets"][..., None], axis=-1)[..., 0]


@pytest.fixture(scope="module")
def params():
    with jax.enable_x64(True):
        return fresh_params(MODEL)


def with_old(params, batch, temperature):
    """Adds advantages of both signs, and a policy that has moved by little and by much."""
    now = of_targets(log_probs(params, batch, temperature), batch)
    change = np.resize([0.05, 0.4, -0.4, -0.1, 0.3, -0.3], now.shape)
    signs = np.resize([1, 1, 1, 1, -1, -1, -1], now.shape)
    return batch | {"log_probs": now - change, "advantages": jnp.asarray(signs * 1.5)}


def assert_same(found, wanted, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), found, dict(wanted))


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_of_a_policy_is_that_of_the_clipped_surrogate(params, temperature):
    batch = with_old(params, rows(0), temperature)
    mask = batch["mask"]
    policy = Policy(MODEL, pretrain_coefficient=0.0, temperature=temperature, loss_chunk_tokens=7)

    def surrogate(params):
        log_p = of_targets(log_probs(params, batch, temperature), batch)
        loss = jax.vmap(jax.vmap(clipped))(-log_p, batch["log_probs"], batch["advantages"])
        return jnp.sum(loss * mask)

    def ours(params):
        loss_sum, weight, metrics = policy.loss(params, batch, jax.random.key(0))
        return loss_sum, (weight, metrics)

    (found, (weight, metrics)), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    wanted, of_surrogate = jax.jit(jax.value_and_grad(surrogate))(params)
    assert float(found) == pytest.approx(float(wanted), rel=1e-12)
    assert float(weight) == float(mask.sum())
    assert_same(gradient, of_surrogate, 1e-10)
    ratio = np.exp(np.resize([0.05, 0.4, -0.4, -0.1, 0.3, -0.3], mask.shape))
    outside = (np.abs(ratio - 1) > CLIP) & (np.asarray(mask) > 0)
    assert float(metrics["clipped"][0]) == outside.sum() > 3
    assert float(metrics["ratio"][0]) == pytest.approx(float((ratio * mask).sum()), rel=1e-12)
    distance = float((np.abs(ratio - 1) * mask).sum())
    assert float(metrics["ratio_distance"][0]) == pytest.approx(distance, rel=1e-12)
    log_p = log_probs(params, batch, temperature)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    assert float(metrics["entropy"][0]) == pytest.approx(float((entropy * mask).sum()), rel=1e-10)


@pytest.mark.parametrize(
    ("change", "advantage", "slope"),
    [
        (0.1, 2.0, -2 * np.exp(0.1)),
        (0.1, -2.0, 2 * np.exp(0.1)),
        # Beyond the range a token still counts where that takes it back.
        (0.4, 2.0, 0.0),
        (0.4, -2.0, 2 * np.exp(0.4)),
        (-0.4, 2.0, -2 * np.exp(-0.4)),
        (-0.4, -2.0, 0.0),
    ],
)
def test_a_token_beyond_the_clip_range_has_a_slope_only_where_it_leads_back(
    change, advantage, slope
):
    """One token whose log-probability is its one parameter, by the loss that a policy has."""
    hidden = jnp.ones((1, 1, 1))
    old = jnp.full((1, 1), np.log(0.5) - change)

    def loss(logit):
        kernel = jnp.stack([logit, jnp.zeros(())])[None]
        policy_loss = linear_cross_entropy(
            hidden,
            kernel,
            jnp.zeros((1, 1), int),
            jnp.ones((1, 1)),
            vocab_size=2,
            token_loss=ppo._Clipped(CLIP),
            token_inputs=(old, jnp.full((1, 1), advantage)),
        )
        return policy_loss[0]

    # At even odds the log-probability moves by half of what the logit does.
    assert float(jax.grad(loss)(jnp.zeros(()))) == pytest.approx(slope / 2, abs=1e-14)


@pytest.mark.slow
def test_the_share_of_text_adds_half_its_mean_loss(params):
    batch = with_old(params, rows(0), 1.0)
    text = rows(1, num=2, length=12)
    text["loss_weights"] = jnp.asarray(np.random.default_rng(2).integers(2, size=(2, 12)) * 1.0)
    text["target_bytes"] = jnp.full((2, 12), 2)
    del text["mask"]
    policy = Policy(MODEL, pretrain_coefficient=0.5, pretrain_rows=2, pretrain_length=12)
    alone = Policy(MODEL, pretrain_coefficient=0.0)
    whole = batch | pretrain_part(jax.device_get(text), float(batch["mask"].sum()))
    assert set(policy.batch_shapes(3, 10)) == set(whole)

    def mean(objective, batch):
        def loss(params):
            loss_sum, weight, _ = objective.loss(params, batch, jax.random.key(0))
            return loss_sum / weight

        return jax.jit(jax.grad(loss))(params)

    found = mean(policy, whole)
    parts = mean(alone, batch), mean(CausalLM(MODEL), text)
    assert_same(found, jax.tree.map(lambda a, b: a + 0.5 * b, *parts), 1e-7)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(parts[1])) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("value_clip", [None, 0.1])
def test_the_critic_s_loss_is_half_the_square_and_clipped_if_so_set(value_clip):
    value = Value(MODEL, value_clip=value_clip)
    params = fresh_params(value, 1)
    params["head"]["kernel"] = jnp.asarray(np.random.default_rng(0).normal(size=16))
    batch, rng = rows(3), np.random.default_rng(4)
    returns, old = (jnp.asarray(rng.normal(size=(3, 10))) for _ in range(2))
    batch |= {"values": old, "returns": returns}
    values = RewardModel(MODEL).apply({"params": params}, batch["inputs"])
    loss_sum, weight, metrics = value.loss(params, batch, jax.random.key(0))
    error = (values - returns) ** 2
    if value_clip is not None:
        near = jnp.clip(values, old - value_clip, old + value_clip)
        error = jnp.where((near - returns) ** 2 > error, (near - returns) ** 2, error)
    mask = batch["mask"]
    assert float(loss_sum) == pytest.approx(float(jnp.sum(error * mask) / 2), rel=1e-6)
    taken = np.asarray(returns)[np.asarray(mask) > 0]
    means = {name: float(a / b) for name, (a, b) in metrics.items()}
    left = np.square(np.asarray(values - returns))[np.asarray(mask) > 0]
    assert ppo.unexplained_variance(means) == pytest.approx(left.mean() / taken.var(), rel=1e-6)
    assert float(metrics["return"][0] / weight) == pytest.approx(taken.mean(), rel=1e-6)


def test_returns_that_do_not_vary_leave_nothing_to_explain():
    means = {"square_return": 4.0, "return": 2.0, "square_error": 1.0}
    assert np.isnan(ppo.unexplained_variance(means))


def test_scores_of_tokens_do_not_depend_on_the_size_of_the_chunks(params):
    batch = rows(5)
    found = [
        token_scores(params, batch, MODEL, temperature=0.9, loss_chunk_tokens=chunk)[1]
        for chunk in (3, 512)
    ]
    for name in ("nll_BT", "entropy_BT"):
        np.testing.assert_allclose(found[0][name], found[1][name], atol=1e-13)
