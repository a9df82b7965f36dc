"""How a module declares a weight."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_style.models.config import TransformerConfig


def weight(
    module: nn.Module,
    config: TransformerConfig,
    name: str,
    init: nn.initializers.Initializer,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
) -> jax.Array:
    """Declares one weight of a module with its logical axes."""
    boxed_init = nn.with_logical_partitioning(init, axes)
    value: Any = module.param(name, boxed_init, shape, jnp.dtype(config.param_dtype))
    return value
