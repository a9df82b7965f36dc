"""A layer of experts against token by token arithmetic, and mixtures made of dense models."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from t5x_style.infer import decode
from t5x_style.infer.sampler import Sampler
from t5x_style.models import transformer
from t5x_style.models.config import MoEConfig, TransformerConfig
from t5x_style.models.moe import MoE, collected
from t5x_style.models.upcycling import upcycled
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.ops.experts import Experts
from t5x_style.ops.routers import Dropless, ExpertChoice, Rectify, Sam, TopK
from t5x_style.parallel import dispatch
from t5x_style.run.hf_export import hf_export
from t5x_style.train import checkpoint
from tests.fresh import fresh_params
from tests.numerics.one_hot_dispatch import one_hot_dispatch
from tests.numerics.test_ops_experts import formula

BATCH, LENGTH, EXPERTS, RANKS = 4, 16, 8, 4
CONFIG = TransformerConfig(
    vocab_size=40,
    num_layers=4,
    embed_dim=6,
    num_query_heads=2,
    num_kv_heads=1,
    head_dim=4,
    mlp_dim=8,
    init_std=0.4,
)
ROUTERS = {
    "top1": TopK(capacity_factor=0.5),
    "top2": TopK(k=2),
    "rectify1": Rectify(capacity_factor=0.5),
    "rectify2": Rectify(k=2),
    "rectify_bounded": Rectify(capacity_factor=0.5, max_intra_rank=0.25),
    "sam": Sam(k=2),
    "sam_separate": Sam(k=2, gating="separate"),
    "dropless": Dropless(k=2),
    "expert_choice": ExpertChoice(),
}


def with_experts(router, **changes):
    moe = MoEConfig(EXPERTS, router, num_ranks=RANKS)
    return dataclasses.replace(CONFIG, moe=dataclasses.replace(moe, **changes))


def layer_arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, LENGTH, CONFIG.embed_dim)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(rng.random((BATCH, LENGTH)) < 0.9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUTERS)
def test_a_layer_is_the_sum_of_what_its_routes_say(name):
    router = ROUTERS[name]
    config = with_experts(router)
    x, is_real = layer_arrays()
    layer = MoE(config)
    params = nn.unbox(jax.jit(lambda: layer.init(jax.random.key(0), x, is_real, 1)["params"])())
    y = np.asarray(jax.jit(lambda params: layer.apply({"params": params}, x, is_real, 1))(params))
    y = y.reshape(RANKS, -1, CONFIG.embed_dim)
    weights = [np.asarray(params[n], np.float64) for n in ("w1", "w3", "w2")]
    with_five = [np.concatenate([w, w]) for w in weights]  # `formula` has five experts at most

    def made_by(token, expert):
        return formula(token, [w[expert : expert + 5] for w in with_five], 0)

    tokens = np.asarray(x, np.float64).reshape(RANKS, -1, CONFIG.embed_dim)
    real = np.asarray(is_real).reshape(RANKS, -1)
    own = EXPERTS // RANKS
    capacity = router.capacity(tokens.shape[1], EXPERTS, num_ranks=RANKS)
    per_bin = EXPERTS // router.num_bins(EXPERTS, num_ranks=RANKS)
    route = jax.jit(lambda logits, real, rank: router(logits, real, rank=rank, num_ranks=RANKS))
    for rank in range(RANKS):
        logits = jnp.asarray(tokens[rank], jnp.float32) @ params["router"]
        routes = jax.device_get(route(logits, jnp.asarray(real[rank]), jnp.int32(rank)))
        for s, token in enumerate(tokens[rank]):
            wanted = np.zeros(CONFIG.embed_dim)
            for r in range(routes.bin_SR.shape[1]):
                if routes.slot_SR[s, r] >= capacity:
                    continue
                first = int(routes.bin_SR[s, r]) * per_bin
                inner = [(first, 1.0)]
                if routes.inner is not None:
                    inner = [
                        (first + int(e), float(w))
                        for e, w in zip(
                            routes.inner.expert_SRK[s, r],
                            routes.inner.weight_SRK[s, r],
                            strict=True,
                        )
                    ]
                for expert, weight in inner:
                    factor = float(routes.weight_SR[s, r]) * weight
                    wanted += factor * made_by(token, expert)
            if routes.local is not None and routes.local.needed_S[s]:
                expert = rank * own + int(routes.local.expert_S[s])
                wanted += float(routes.local.weight_S[s]) * made_by(token, expert)
            found = y[rank, s]
            np.testing.assert_allclose(found, wanted, atol=2e-5 * max(1, abs(wanted).max()))
            assert real[rank, s] or not found.any()


@pytest.mark.parametrize(
    "name", ["top1", pytest.param("top2", marks=pytest.mark.slow), "fill_in", "expert_choice"]
)
def test_tokens_travel_as_products_with_masks_say(name):
    router = {**ROUTERS, "fill_in": Rectify(k=2, intra_rank=False)}[name]
    x, is_real = layer_arrays()
    x, is_real = x.reshape(RANKS, -1, CONFIG.embed_dim), is_real.reshape(RANKS, -1)
    rng = np.random.default_rng(2)
    dim, inner = CONFIG.embed_dim, CONFIG.mlp_dim
    shapes = [(EXPERTS, dim, inner), (EXPERTS, dim, inner), (EXPERTS, inner, dim)]
    experts = Experts(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes))
    matrix, d_y = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((dim, EXPERTS), x.shape))
    capacity = router.capacity(x.shape[1], EXPERTS, num_ranks=RANKS)

    def gradients(layer):
        def loss(x, matrix, experts):
            routes = jax.vmap(
                lambda logits, real, rank: router(logits, real, rank=rank, num_ranks=RANKS)
            )(x @ matrix, is_real, jnp.arange(RANKS))
            y = layer(x, routes, experts)
            return jnp.sum(y * d_y), y

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(x, matrix, experts)

    found = gradients(
        lambda x, routes, experts: dispatch.through_experts(
            x,
            routes,
            experts,
            dispatch.Everywhere(RANKS),
            num_bins=EXPERTS,
            capacity=capacity,
            local_capacity=0,
        )
    )
    wanted = gradients(functools.partial(one_hot_dispatch, capacity=capacity))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def dense():
    params = fresh_params(CONFIG)
    return params, jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 3, CONFIG.vocab_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "rectify2",
        "rectify1",
        "dropless",
    ],
)
def test_an_upcycled_model_says_what_the_dense_one_does(name):
    params, tokens = dense()
    wanted = jax.jit(transformer.Transformer(CONFIG).apply)({"params": params}, tokens)
    moe = with_experts(ROUTERS[name]).moe
    config, experts = upcycled(params, CONFIG, moe, jax.random.key(2))
    found = jax.jit(transformer.Transformer(config).apply)({"params": experts}, tokens)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    prompts = [list(map(int, row[:9])) for row in tokens[:2]]
    ours, theirs = (
        Sampler(c, p).generate(prompts, 4) for c, p in ((CONFIG, params), (config, experts))
    )
    assert [s.tokens for s in ours] == [s.tokens for s in theirs]
    assert TransformerConfig.from_dict(config.to_dict()) == config


@pytest.mark.slow
def test_neither_padding_nor_rows_that_have_ended_take_experts_from_prompts():
    moe = MoEConfig(EXPERTS, TopK(capacity_factor=10 * EXPERTS / 16, priority="index"), num_ranks=1)
    config, params = upcycled(dense()[0], CONFIG, moe, jax.random.key(2))
    params = transformer.unstack_layers(params, config)
    for i in (1, 3):
        params[f"layers_{i}"]["moe"]["router"] *= 0  # all tokens to expert 0, which has 10 places
    ample = dataclasses.replace(config, moe=dataclasses.replace(moe, router=Dropless()))
    bases = jnp.full(2, config.rope_base)
    prompts = decode.Prompts(
        tokens_RP=jnp.array([[0] * 6 + [5, 6], [7, 8, 9, 10, 11, 12, 13, 14]], jnp.int32),
        num_tokens_R=jnp.array([2, 8]),
        rope_bases_R=bases,
    )
    is_visible = jnp.arange(9) >= jnp.array([[6], [0]])
    places = decode.Places(jnp.int32(8), jnp.array([2, 8]), bases, is_visible)

    def prefilled(config):
        prefill = functools.partial(decode.prefill, config=config, free_slots=(0, 1))
        return jax.jit(prefill)(params, prompts)

    def next_hidden(config, is_alive):
        tokens, caches = jnp.array([3, 4], jnp.int32), prefilled(ample)[1]
        alive = jnp.array(is_alive)
        decode_token = functools.partial(decode.decode_token, config=config)
        return jax.jit(decode_token)(params, tokens, places, caches, alive)[0]

    np.testing.assert_allclose(prefilled(config)[0], prefilled(ample)[0], atol=1e-6)
    tight = dataclasses.replace(moe, router=TopK(capacity_factor=0.1, priority="index"))
    tight = dataclasses.replace(config, moe=tight)
    wanted = next_hidden(ample, [True, True])[1]
    np.testing.assert_allclose(next_hidden(tight, [False, True])[1], wanted, atol=1e-6)
    assert np.abs(next_hidden(tight, [True, True])[1] - wanted).max() > 1e-3


def test_tokens_without_a_place_are_left_out_where_nothing_rectifies():
    params, tokens = dense()
    config, experts = upcycled(
        params, CONFIG, with_experts(TopK(capacity_factor=0.25)).moe, jax.random.key(2)
    )
    wanted = jax.jit(transformer.Transformer(CONFIG).apply)({"params": params}, tokens)
    found = jax.jit(transformer.Transformer(config).apply)({"params": experts}, tokens)
    assert float(jnp.abs(found - wanted).max()) > 0.1


def test_a_mixture_cannot_be_upcycled_again_or_leave_for_hugging_face(tmp_path):
    params, _ = dense()
    moe = with_experts(TopK()).moe
    config, experts = upcycled(params, CONFIG, moe, jax.random.key(2))
    checkpoint.save_model(tmp_path / "run", config, experts)
    with pytest.raises(ValueError, match=r"run is a mixture of experts.*hf_export\.run_dir"):
        hf_export(str(tmp_path / "run"), str(tmp_path / "hf"))
    with pytest.raises(ValueError, match="mixture of experts already"):
        upcycled(experts, config, moe, jax.random.key(2))
    with pytest.raises(ValueError, match=r"expert_dim = 5.*width 8"):
        upcycled(params, CONFIG, dataclasses.replace(moe, expert_dim=5), jax.random.key(2))


def lm_batch():
    _, tokens = dense()
    at = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    segments = jnp.where(at < LENGTH - 3, 1 + (at > 6), 0)
    return {
        "inputs": tokens,
        "targets": jnp.roll(tokens, -1, axis=1),
        "positions": at,
        "segment_ids": segments,
        "loss_weights": (segments > 0).astype(jnp.float32),
        "target_bytes": jnp.ones_like(tokens),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rectify2", "sam"])
def test_scanned_unrolled_and_rematerialised_layers_agree(name):
    config = with_experts(ROUTERS[name], num_shared_experts=1)
    params = fresh_params(config)
    batch = lm_batch()

    def gradient(config, params):
        def loss(params):
            loss_sum, weight_sum, metrics = CausalLM(config).loss(params, batch, jax.random.key(0))
            return loss_sum / weight_sum, metrics

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (loss, metrics), wanted = gradient(config, params)
    assert metrics["moe/slots_filled"][1] > 0
    unrolled = dataclasses.replace(config, scan_layers=False)
    (other, others), found = gradient(unrolled, transformer.unstack_layers(params, config))
    assert float(other) == pytest.approx(float(loss), rel=1e-6)
    for metric, pair in metrics.items():
        for a, b in zip(others[metric], pair, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=metric)
    found = transformer.stack_layers(found, config)
    remat = dataclasses.replace(config, remat="full")
    for gradients in (found, gradient(remat, params)[1]):
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_losses_of_routers_reach_the_objective():
    config = with_experts(TopK(balance_coefficient=0.5))
    free = with_experts(TopK(balance_coefficient=0.0))
    params = fresh_params(config)
    (with_loss, weight, metrics), (without, _, _) = (
        jax.jit(CausalLM(x).loss)(params, lm_batch(), jax.random.key(0)) for x in (config, free)
    )
    total, num = metrics["moe/balance_loss"]
    assert num == 2  # layers with experts
    assert float((with_loss - without) / weight) == pytest.approx(0.5 * float(total), rel=1e-4)
    load, num_tokens = metrics["moe/load"]
    chosen, _ = metrics["moe/chosen"]
    assert load.shape == chosen.shape == (2, EXPERTS)
    assert (load <= chosen).all()
    np.testing.assert_array_equal(chosen.sum(1), [num_tokens, num_tokens])
    assert collected({})[1] == {}
