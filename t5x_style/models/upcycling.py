"""From a dense model to a mixture of experts that at first says the same.

Every expert is a copy of the feed-forward layer it replaces and the router is drawn at random
(arXiv 2402.12399, after arXiv 2212.05055): with weights that sum to 1 and no token
left out, the outputs are the dense model's.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from t5x_style.models import transformer
from t5x_style.models.config import MoEConfig, TransformerConfig

_MATRICES = ("w1", "w3", "w2")


def upcycled(
    params: transformer.Params, config: TransformerConfig, moe: MoEConfig, rng: jax.Array
) -> tuple[TransformerConfig, dict[str, Any]]:
    """Returns the config and the params of a mixture of experts.

    Args:
      params: of a dense model.
      config: its config.
      moe: which layers become mixtures, and of what.
      rng: for the routers.

    Raises:
      ValueError: the model is a mixture already, or the experts are to be of another width.
    """
    if config.moe is not None:
        raise ValueError("the model is a mixture of experts already: give a dense one to upcycle")
    if moe.expert_dim not in (None, config.mlp_dim) or moe.num_shared_experts:
        raise ValueError(
            f"config.MoEConfig.expert_dim = {moe.expert_dim} and num_shared_experts = "
            f"{moe.num_shared_experts}: an expert is a copy of a layer of width {config.mlp_dim}, "
            "and none is shared; leave the first out and set the second to 0"
        )
    target = dataclasses.replace(config, moe=moe)
    shape = (config.embed_dim, moe.num_logits)
    layers = transformer.unstack_layers(params, config) if config.scan_layers else dict(params)
    for i in range(config.num_layers):
        if not target.is_moe_layer(i):
            continue
        layer = dict(layers[f"layers_{i}"])
        dense = layer.pop("feed_forward")
        router = config.init_std * jax.random.normal(jax.random.fold_in(rng, i), shape)
        copies = {
            name: jnp.broadcast_to(dense[name], (moe.num_experts, *dense[name].shape))
            for name in _MATRICES
        }
        layers[f"layers_{i}"] = layer | {"moe": {"router": router.astype(jnp.float32), **copies}}
    return target, transformer.stack_layers(layers, target) if config.scan_layers else layers
