"""Initial values of the weights, as InternLM2's training code lists them."""

import jax
import jax.numpy as jnp
from flax import linen as nn


def normal(std: float) -> nn.initializers.Initializer:
    """Returns an initialiser that draws from a normal distribution of mean 0."""
    return nn.initializers.normal(std)


def depth_scaled_normal(std: float, layer_index: jax.Array | int) -> nn.initializers.Initializer:
    """Returns `normal(std / sqrt(2 (layer_index + 1)))`, layer_index counted from 0.

    For the two matrices of a block that write to the residual stream. The layer index may be
    traced, so the same block serves a scan over layers.
    """

    def init(key, shape, dtype=jnp.float32):
        scale = std / jnp.sqrt(2.0 * (jnp.asarray(layer_index, jnp.float32) + 1.0))
        return (jax.random.normal(key, shape, jnp.float32) * scale).astype(dtype)

    return init
