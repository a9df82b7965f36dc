"""Experts over several devices: as on one that plays all ranks, and no more sent than needed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from t5x_style.models import moe
from t5x_style.models.config import MoEConfig, TransformerConfig
from t5x_style.models.moe import COLLECTION, MoE
from t5x_style.ops.routers import Dropless, ExpertChoice, Rectify, TopK
from t5x_style.ops.sam_router import Sam
from t5x_style.parallel import hlo
from t5x_style.parallel.mesh import MeshConfig

BATCH, LENGTH, DIM, EXPERTS, RANKS = 8, 16, 16, 8, 4
ROUTERS = {
    "top1": TopK(),
    "top2": TopK(k=2, capacity_factor=0.75),
    "rectify1": Rectify(k=1, capacity_factor=0.75),
    "rectify2": Rectify(k=2),
    "sam": Sam(k=2),
    "sam_separate": Sam(k=2, gating="separate"),
    "dropless": Dropless(k=2),
    "expert_choice": ExpertChoice(),
}
MESHES = {
    "tensor": MeshConfig(data=1, expert=RANKS, tensor=2),
    "data": MeshConfig(data=2, expert=RANKS),
    "fsdp": MeshConfig(data=1, fsdp=2, expert=RANKS),
    "seq": MeshConfig(data=1, seq=2, expert=RANKS),
}


def config(router, dispatch="shard_map", **changes):
    return TransformerConfig(
        vocab_size=64,
        num_layers=2,
        embed_dim=DIM,
        num_query_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_dim=32,
        init_std=0.3,
        moe=MoEConfig(EXPERTS, router, dispatch=dispatch, num_ranks=RANKS, **changes),
    )


@functools.cache
def arrays():
    rng = np.random.default_rng(0)
    x, d_y = (rng.normal(size=(BATCH, LENGTH, DIM)).astype(np.float32) for _ in range(2))
    return x, d_y, rng.random((BATCH, LENGTH)) < 0.9


@functools.cache
def params_of(model):
    x, _, is_real = map(jnp.asarray, arrays())
    # On one device: a mesh that is set where this is first called would cut them.
    with jax.set_mesh(MeshConfig(data=1).build(jax.devices()[:1])):
        init = jax.jit(lambda: MoE(model).init(jax.random.key(0), x, is_real, 1)["params"])
        return jax.device_get(nn.unbox(init()))


def results(model, params):
    """Output, gradients of weights and tokens, losses and sums of a layer and its losses."""
    x, d_y, is_real = map(jnp.asarray, arrays())

    def loss(params, x):
        y, left = MoE(model).apply({"params": params}, x, is_real, 1, mutable=[COLLECTION])
        return jnp.sum(y * d_y) + left[COLLECTION]["loss"][0], (y, left)

    gradients, (y, left) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    return y, gradients, left


def assert_close(found, wanted, tolerance=2e-6):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = max(float(jnp.abs(b).max()), 1e-6)
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=tolerance)


# Each router with the axis that cuts experts; each other axis with two routers.
CASES = [(router, "tensor") for router in ROUTERS]
CASES += [(router, mesh) for router in ("rectify2", "sam") for mesh in ("data", "fsdp", "seq")]


@pytest.mark.slow
@pytest.mark.parametrize(("router", "mesh"), CASES)
def test_both_ways_to_travel_agree(router, mesh):
    found = {}
    for dispatch in ("shard_map", "pjit"):
        model = config(ROUTERS[router], dispatch)
        params = params_of(model)
        with jax.set_mesh(MESHES[mesh].build()):
            found[dispatch] = jax.jit(functools.partial(results, model))(params)
    assert_close(found["shard_map"], found["pjit"])
    if mesh == "tensor":
        # One device that plays four ranks.
        model = config(ROUTERS[router], "pjit")
        assert_close(
            found["shard_map"], jax.jit(functools.partial(results, model))(params_of(model))
        )


def ragged_all_to_all(
    operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name
):
    """What `jax.lax.ragged_all_to_all` is said to do, for platforms that cannot: by sending all."""
    size, rank = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
    slices = input_offsets.size // size
    sent = jax.lax.all_gather(
        (operand, input_offsets, send_sizes, output_offsets, recv_sizes), axis_name
    )
    rows = jnp.arange(operand.shape[0])
    for source in range(size):
        of_source, starts, sizes, targets, _ = jax.tree.map(lambda x, i=source: x[i], sent)
        for i in range(slices):
            at = rank * slices + i
            taken = starts[at] + rows
            put = jnp.where(rows < sizes[at], targets[at] + rows, operand.shape[0])
            found = jnp.take(of_source, taken, axis=0, mode="fill", fill_value=0)
            output = output.at[put].set(found, mode="drop")
    return output


@pytest.mark.slow
@pytest.mark.parametrize("router", ["dropless", "rectify2", "sam"])
def test_what_is_filled_is_all_that_need_travel(router, monkeypatch):
    found = {}
    for dispatch in ("shard_map", "ragged"):
        model = config(ROUTERS[router], dispatch)
        params = params_of(model)
        with jax.set_mesh(MESHES["tensor"].build()):
            found[dispatch] = jax.jit(functools.partial(results, model))(params)
        monkeypatch.setattr(jax.lax, "ragged_all_to_all", ragged_all_to_all)
        monkeypatch.setattr(moe, "platform", lambda: "gpu")
    assert_close(found["ragged"], found["shard_map"])


@pytest.mark.slow
def test_ragged_sending_is_refused_where_it_is_not_to_be_had():
    model = config(Dropless(), "ragged")
    with (
        jax.set_mesh(MESHES["tensor"].build()),
        pytest.raises(ValueError, match=r"MoEConfig.dispatch.*shard_map"),
    ):
        results(model, params_of(config(Dropless())))


@pytest.mark.slow
def test_ranks_that_the_mesh_has_not_are_refused():
    model = config(TopK())
    params, (x, _, is_real) = params_of(model), arrays()
    with (
        jax.set_mesh(MeshConfig(data=1, expert=8).build()),
        pytest.raises(ValueError, match=r"8 devices.*4 ranks.*MeshConfig.expert"),
    ):
        jax.jit(lambda x: MoE(model).apply({"params": params}, x, is_real, 1))(x)


def sent_bytes(router):
    """What a device sends by all-to-all in a forward pass, from the compiled program."""
    model, mesh = config(router), MeshConfig(data=2, expert=RANKS).build()
    params = params_of(model)
    x, _, is_real = map(jnp.asarray, arrays())
    with jax.set_mesh(mesh):
        run = jax.jit(lambda params, x: MoE(model).apply({"params": params}, x, is_real, 1))
        text = run.lower(params, x).compile().as_text()
    sent = hlo.Program(text, mesh).sent_bytes()
    return sum(n for (kind, axes), n in sent.items() if (kind, axes) == ("all-to-all", ("expert",)))


@pytest.mark.slow
def test_a_group_is_sent_one_copy_whatever_the_number_of_its_experts():
    top1, top4 = sent_bytes(TopK(k=1)), sent_bytes(TopK(k=4))
    assert top4 == pytest.approx(4 * top1)
    by_experts = [sent_bytes(Sam(num_groups=RANKS, k=k)) for k in (1, 2)]
    # Besides the token, its weights and experts travel: two numbers for each expert.
    more = 2 * 4 * (BATCH * LENGTH // 8) * (RANKS - 1) / RANKS
    assert by_experts[1] - by_experts[0] == pytest.approx(more)
    assert by_experts[0] == pytest.approx(top1 + more)
