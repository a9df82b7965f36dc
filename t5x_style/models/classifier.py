"""An encoder with a head that judges whole texts: one logit for each.

Packed rows hold several texts as segments, which neither see each other nor share in a mean. The
loss is in `objectives.classification`. Legend: B batch, T length, D model.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from t5x_style.models.config import TransformerConfig
from t5x_style.models.scalar_head import ScalarHead
from t5x_style.models.transformer import Transformer
from t5x_style.ops.classification import segment_means

POOLINGS = ("mean", "first")


class Classifier(nn.Module):
    """Encoder, pooling and head.

    As the head is linear, the logit of a mean of hidden states is the mean of their logits, which
    is what is computed. Params: encoder/..., those of `Transformer` without its head, and
    head/kernel [D], head/bias [].

    Attributes:
      config: of the encoder.
      pooling: "mean" over the tokens of a text, or its "first" token, which sees all others.
    """

    config: TransformerConfig
    pooling: str = "mean"

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, segment_ids_BT: jax.Array
    ) -> jax.Array:
        """Returns at each token the logit of the text that it is of, [B, T] in fp32.

        Args:
          tokens_BT: int32 ids.
          positions_BT: int32, counted from 0 in each text.
          segment_ids_BT: int32, 0 for padding.
        """
        hidden_BTD = Transformer(self.config, has_head=False, name="encoder")(
            tokens_BT, positions_BT=positions_BT, segment_ids_BT=segment_ids_BT
        )
        head = ScalarHead(self.config, self.config.init_std, has_bias=True, name="head")
        logits_BT = head(hidden_BTD)
        is_counted_BT = segment_ids_BT > 0
        if self.pooling == "first":
            is_counted_BT &= positions_BT == 0
        return segment_means(logits_BT, is_counted_BT, segment_ids_BT)


def init_params(config: TransformerConfig, pooling: str, rng: jax.Array) -> Any:
    """Returns freshly drawn params, each leaf boxed with its logical axes."""
    one = jnp.zeros((1, 1), jnp.int32)
    return Classifier(config, pooling).init(rng, one, one, one)["params"]


def check(config: TransformerConfig, pooling: str) -> None:
    """Compares a model with what a classifier can be.

    Raises:
      ValueError: the model is no encoder, has experts (whose room texts would take from each other,
        so that a score depended on its neighbours), or the pooling is unknown.
    """
    if config.causal or config.moe is not None:
        raise ValueError(
            f"config.TransformerConfig.causal = {config.causal}, moe = {config.moe}: a classifier "
            "reads texts in both directions and has no experts; set them to False and None"
        )
    if pooling not in POOLINGS:
        raise ValueError(
            f"classification.Classification.pooling = {pooling!r}: must be one of {POOLINGS}"
        )
