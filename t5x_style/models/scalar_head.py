"""A head that makes one number of each token's hidden state: a logit, a score, a value.

Which tokens' numbers mean anything is the affair of the models that have such a head.
Legend: B batch, T length, D model.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_style.models import initializers
from t5x_style.models.config import TransformerConfig
from t5x_style.models.weights import weight
from t5x_style.parallel.rules import gather


class ScalarHead(nn.Module):
    """A linear map from a token's hidden state to a number.

    Params: kernel [D], and bias [] if there is one.

    Attributes:
      config: of the model below it.
      init_std: standard deviation of the kernel's first values, 0 for zeros.
      has_bias: whether a bias is added.
    """

    config: TransformerConfig
    init_std: float
    has_bias: bool

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
        """Returns [B, T] in at least fp32."""
        config = self.config
        init = initializers.normal(self.init_std) if self.init_std else nn.initializers.zeros
        kernel_D = weight(self, config, "kernel", init, (config.embed_dim,), ("embed",))
        wide: Any = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
        kernel_D: Any = gather(kernel_D, ("embed",))
        numbers_BT = jnp.sum(hidden_BTD.astype(wide) * kernel_D.astype(wide), axis=-1)
        if not self.has_bias:
            return numbers_BT
        bias = weight(self, config, "bias", nn.initializers.zeros, (), ())
        return numbers_BT + bias.astype(wide)
