"""A mixture of experts in the place of a feed-forward layer: names, shapes and axes.

Who goes where is `ops.routers`, how tokens travel `parallel.dispatch`.
Legend: B batch, T length, D model, E experts, F feed-forward, P source ranks, S tokens of one.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_style.models import initializers
from t5x_style.models.config import MoEConfig, TransformerConfig
from t5x_style.models.weights import weight
from t5x_style.ops import feed_forward, routing
from t5x_style.ops.experts import Experts
from t5x_style.parallel import dispatch, rules
from t5x_style.parallel.islands import on_each_device
from t5x_style.parallel.mesh import platform
from t5x_style.parallel.rules import constrain

# The collection of variables that a layer leaves its losses and metrics in.
COLLECTION = "moe"

Pairs = dict[str, tuple[jax.Array, jax.Array]]

_TOKENS = ("act_batch", "act_length", None)


def collected(variables: Mapping[str, Any]) -> tuple[jax.Array, Pairs]:
    """Returns what the layers of a model have left in `COLLECTION`.

    Args:
      variables: what applying the model has changed.

    Returns:
      The sum of the layers' losses, each with its coefficient, and metrics named moe/NAME as pairs
      of sums over layers; 0 and none for a model without experts. moe/chosen and moe/load, over
      the number of tokens, are [mixtures, E]: first choices, and tokens with a slot.
    """
    loss, metrics, counts = jnp.float32(0), {}, []
    for left in _layers(variables.get(COLLECTION, {})):
        loss += jnp.sum(left["loss"][0])
        for name, pair in left["metrics"][0].items():
            before = metrics.get(f"moe/{name}", (0, 0))
            metrics[f"moe/{name}"] = tuple(
                a + jnp.sum(b) for a, b in zip(before, pair, strict=True)
            )
        counts.append(jnp.stack(left["counts"][0]).reshape(2, -1, left["counts"][0][0].shape[-1]))
    if counts:
        chosen_LE, load_LE = jnp.concatenate(counts, axis=1)
        num_tokens = jnp.sum(chosen_LE[0])
        metrics |= {"moe/chosen": (chosen_LE, num_tokens), "moe/load": (load_LE, num_tokens)}
    return loss, metrics


def _layers(tree: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields what each layer, or each stack of them, has left, the lower ones first."""
    for _, child in sorted(tree.items(), key=lambda item: (len(item[0]), item[0])):
        if isinstance(child, Mapping):
            if "counts" in child:
                yield child
            else:
                yield from _layers(child)


class MoE(nn.Module):
    """Experts chosen by a router for each token, and experts that every token goes through.

    Weights: `router` [D, E] in fp32 (more columns, if the router wants them), `w1`, `w3` [E, D, F],
    `w2` [E, F, D], and, with shared experts, `shared_w1`, `shared_w3`, `shared_w2` of one layer as
    wide as all of them.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, is_real_BT: jax.Array | None, layer_index: jax.Array | int
    ) -> jax.Array:
        """Returns the layer's output, [B, T, D].

        Args:
          x_BTD: tokens.
          is_real_BT: bool; padding takes no place with any expert. None where all are real.
          layer_index: counted from 0; only initialisation reads it.
        """
        config = self.config
        moe = config.moe
        assert moe is not None
        dim, inner = config.embed_dim, moe.expert_dim or config.mlp_dim
        init = initializers.normal(config.init_std)
        out_init = initializers.depth_scaled_normal(config.init_std, layer_index)
        router_DE: Any = self.param(
            "router",
            nn.with_logical_partitioning(init, ("embed", "norm")),
            (dim, moe.num_logits),
            jnp.float32,
        )
        axes = ("experts", "expert_embed", "mlp")
        shape = (moe.num_experts, dim, inner)
        w1, w3 = (weight(self, config, name, init, shape, axes) for name in ("w1", "w3"))
        w2 = weight(
            self,
            config,
            "w2",
            out_init,
            (moe.num_experts, inner, dim),
            ("experts", "mlp", "expert_embed"),
        )
        wide_BTD = x_BTD.astype(jnp.promote_types(x_BTD.dtype, jnp.float32))
        gathered_DE: Any = rules.gather(router_DE, ("embed", "norm"))
        logits_BTE = wide_BTD @ gathered_DE
        if is_real_BT is None:
            is_real_BT = jnp.ones(x_BTD.shape[:2], bool)
        is_real_BT = jnp.broadcast_to(is_real_BT, x_BTD.shape[:2])
        experts = Experts(w1, w3, w2).astype(x_BTD.dtype)
        y_BTD, losses_P, sums_P = _routed(x_BTD, logits_BTE, is_real_BT, experts, moe)
        coefficients = moe.router.loss_coefficients
        loss = sum(
            (coefficients[name] * jnp.mean(values) for name, values in losses_P.items()),
            start=jnp.float32(0),
        )
        losses = {f"{name}_loss": (jnp.mean(x), jnp.float32(1)) for name, x in losses_P.items()}
        sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums_P)
        self.sow(COLLECTION, "loss", loss)
        self.sow(
            COLLECTION,
            "metrics",
            losses | sums["metrics"] | routing.spread(sums["chosen_E"]),
        )
        self.sow(COLLECTION, "counts", (sums["chosen_E"], sums["load_E"]))
        if moe.num_shared_experts:
            shape, axes = (dim, moe.num_shared_experts * inner), ("embed", "mlp")
            of_all = {
                "shared_w1": (init, shape, axes),
                "shared_w3": (init, shape, axes),
                "shared_w2": (out_init, shape[::-1], axes[::-1]),
            }
            shared = (weight(self, config, name, *spec) for name, spec in of_all.items())
            y_BTD = y_BTD + feed_forward.swiglu(x_BTD, *shared)
        return y_BTD


def _routed(x_BTD, logits_BTE, is_real_BT, experts: Experts, moe: MoEConfig):
    """Returns the output, and losses and sums with a leading dimension of source ranks."""
    devices = rules.axis_size("expert")
    if devices not in (1, moe.num_ranks):
        raise ValueError(
            f"the mesh has {devices} devices along its expert axis and the model routes over "
            f"{moe.num_ranks} ranks: set mesh.MeshConfig.expert to that, or to 1 for one device "
            "that plays them all; config.MoEConfig.num_ranks is part of what a model is"
        )
    if moe.dispatch != "pjit" and devices > 1:
        return _between_devices(x_BTD, logits_BTE, is_real_BT, experts, moe)
    return _everywhere(x_BTD, logits_BTE, is_real_BT, experts, moe)


def _between_devices(x_BTD, logits_BTE, is_real_BT, experts: Experts, moe: MoEConfig):
    """Each device routes its own tokens and sends them itself."""
    exchange = dispatch.Between("expert", moe.num_ranks)
    if moe.dispatch == "ragged":
        if platform() == "cpu":
            raise ValueError(
                'config.MoEConfig.dispatch = "ragged": XLA for CPUs has no ragged all-to-all; set '
                'it to "shard_map"'
            )
        exchange = dispatch.Ragged("expert", moe.num_ranks)
    has_parts = rules.axis_size("tensor") > 1

    # What is known of one rank, whichever it is, has the same shapes.
    def known_of_one(x_BTD, logits_BTE, is_real_BT):
        of_rank = _one_rank(x_BTD), _one_rank(logits_BTE), _one_rank(is_real_BT)
        return _ranks(*of_rank, None, dispatch.Everywhere(1), moe)[1:]

    shapes: Any = jax.eval_shape(known_of_one, x_BTD, logits_BTE, is_real_BT)
    num_sources = rules.axis_size("data") * rules.axis_size("fsdp") * exchange.num_ranks
    num_sources *= rules.axis_size("seq")

    def local(x_BTD, logits_BTE, is_real_BT, *weights):
        x_1SD, logits_1SE, is_real_1S = map(_one_rank, (x_BTD, logits_BTE, is_real_BT))
        y_1SD, losses, sums = _ranks(
            x_1SD, logits_1SE, is_real_1S, Experts(*weights), exchange, moe
        )
        if has_parts:
            y_1SD = jax.lax.psum(y_1SD, "tensor")
        return (y_1SD.reshape(x_BTD.shape), *jax.tree.leaves((losses, sums)))

    leaves, structure = jax.tree.flatten(shapes)
    y_BTD, *stats = on_each_device(
        local,
        (x_BTD, logits_BTE, is_real_BT, *experts),
        (
            _TOKENS,
            _TOKENS,
            _TOKENS[:2],
            ("experts", None, "mlp"),
            ("experts", None, "mlp"),
            ("experts", "mlp", None),
        ),
        (x_BTD.shape, *((num_sources, *leaf.shape[1:]) for leaf in leaves)),
        (_TOKENS, *(("act_ranks", *[None] * (leaf.ndim - 1)) for leaf in leaves)),
    )
    losses, sums = jax.tree.unflatten(structure, stats)
    return y_BTD, losses, sums


def _one_rank(x_BT: jax.Array) -> jax.Array:
    return x_BT.reshape(1, -1, *x_BT.shape[2:])


def _everywhere(x_BTD, logits_BTE, is_real_BT, experts: Experts, moe: MoEConfig):
    """The tokens of all ranks in one array; the compiler cuts it, or one device plays all."""
    ranks = moe.num_ranks
    pieces = rules.axis_size("seq")
    replicas = rules.axis_size("data") * rules.axis_size("fsdp")
    batch, length, dim = x_BTD.shape
    if batch % (replicas * ranks) or length % pieces:
        # Few tokens, as where one follows another: shared out as they come.
        replicas = pieces = 1
    exchange = dispatch.Everywhere(ranks, replicas, pieces)
    num_sources = ranks * replicas * pieces

    def of_ranks(x_BT):
        rest = x_BT.shape[2:]
        if pieces > 1:
            x_BT = x_BT.reshape(num_sources // pieces, -1, pieces, length // pieces, *rest)
            x_BT = jnp.moveaxis(x_BT, 2, 1)
        else:
            x_BT = x_BT.reshape(-1, *rest)
            filled = -(-x_BT.shape[0] // num_sources) * num_sources
            x_BT = jnp.pad(x_BT, ((0, filled - x_BT.shape[0]), *[(0, 0)] * len(rest)))
        x_PS = x_BT.reshape(num_sources, -1, *rest)
        return constrain(x_PS, "act_ranks", *[None] * (x_PS.ndim - 1))

    y_PSD, losses, sums = _ranks(
        of_ranks(x_BTD), of_ranks(logits_BTE), of_ranks(is_real_BT), experts, exchange, moe
    )
    if pieces > 1:
        y = y_PSD.reshape(num_sources // pieces, pieces, -1, length // pieces, dim)
        y_BTD = jnp.moveaxis(y, 1, 2).reshape(batch, length, dim)
    else:
        y_BTD = y_PSD.reshape(-1, dim)[: batch * length].reshape(batch, length, dim)
    return constrain(y_BTD, *_TOKENS), losses, sums


def _ranks(x_PSD, logits_PSE, is_real_PS, experts, exchange, moe: MoEConfig):
    """Routes the tokens of each source rank by itself, and sends them through the experts."""
    router, num_ranks = moe.router, moe.num_ranks
    num_tokens, num_experts = x_PSD.shape[1], moe.num_experts
    routes = jax.vmap(
        lambda logits, real, rank: router(logits, real, rank=rank, num_ranks=num_ranks)
    )(logits_PSE, is_real_PS, exchange.rank())
    y_PSD = x_PSD
    if experts is not None:
        y_PSD = dispatch.through_experts(
            x_PSD,
            routes,
            experts,
            exchange,
            num_bins=router.num_bins(num_experts, num_ranks=num_ranks),
            capacity=router.capacity(num_tokens, num_experts, num_ranks=num_ranks),
            local_capacity=router.local_capacity(num_tokens),
        )
    sums = {"metrics": routes.metrics, "chosen_E": routes.chosen_E, "load_E": routes.load_E}
    return y_PSD, routes.losses, sums
