"""A decoder with a head that scores: one number at each token, without a bias.

As a reward model its score of a text is the one at the reward id that ends the text (arXiv
2403.17297, section 4.2.1); as PPO's critic every token's number is read. Packed rows hold several
texts as segments, which do not see each other. The loss is in `objectives.reward`.
Legend: B batch, T length.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_style.models.config import TransformerConfig
from t5x_style.models.scalar_head import ScalarHead
from t5x_style.models.transformer import Transformer


class RewardModel(nn.Module):
    """Decoder and head.

    Params: backbone/..., those of `Transformer` without its output matrix, and head/kernel [D].

    Attributes:
      config: of the decoder.
      head_init_std: standard deviation of the head's first values. 0, as in the released code,
        begins with every score 0; the paper draws them, and if they are small scores begin well
        within the barrier.
    """

    config: TransformerConfig
    head_init_std: float = 0.0

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        order_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the score at each token, [B, T] in at least fp32.

        The arguments are those of `Transformer`.
        """
        hidden_BTD = Transformer(self.config, has_head=False, name="backbone")(
            tokens_BT, positions_BT=positions_BT, segment_ids_BT=segment_ids_BT, order_BT=order_BT
        )
        return ScalarHead(self.config, self.head_init_std, has_bias=False, name="head")(hidden_BTD)


def init_params(config: TransformerConfig, rng: jax.Array, *, head_init_std: float = 0.0) -> Any:
    """Returns freshly drawn params, each leaf boxed with its logical axes."""
    return RewardModel(config, head_init_std).init(rng, jnp.zeros((1, 1), jnp.int32))["params"]


def check(config: TransformerConfig) -> None:
    """Compares a model with what a reward model can be.

    Raises:
      ValueError: the model is an encoder, or has experts (whose room texts would take from each
        other, so that a score depended on its neighbours).
    """
    if not config.causal or config.moe is not None:
        raise ValueError(
            f"config.TransformerConfig.causal = {config.causal}, moe = {config.moe}: a reward "
            "model is a decoder without experts; set them to True and None"
        )
