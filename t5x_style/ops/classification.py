"""What a judgement of whole texts needs: means over the tokens of each, and the loss of a yes.

Legend: B batch, T length.
"""

import jax
import jax.numpy as jnp


def segment_means(
    values_BT: jax.Array, is_counted_BT: jax.Array, segment_ids_BT: jax.Array
) -> jax.Array:
    """Returns at each token the mean of the values that count in its segment, [B, T].

    Sums run over the row, masked, so that nothing of another segment enters one, and the order of
    addition is fixed on every platform. A segment in which nothing counts gives 0.

    Args:
      values_BT: one number for each token.
      is_counted_BT: bool, whether it counts.
      segment_ids_BT: int32 segment of each token.
    """
    is_same_BTT = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    is_counted_BTT = is_same_BTT & is_counted_BT[:, None, :]
    sums_BT = jnp.sum(jnp.where(is_counted_BTT, values_BT[:, None, :], 0), axis=-1)
    return sums_BT / jnp.maximum(jnp.sum(is_counted_BTT, axis=-1), 1)


def binary_nll(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns `-log p(label)` in nats where p(1) = 1 / (1 + exp(-logit)).

    Args:
      logits: any shape, in at least fp32.
      labels: 0 or 1, of the same shape.
    """
    return jnp.logaddexp(0, jnp.where(labels > 0, -logits, logits))
