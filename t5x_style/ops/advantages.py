"""What a policy is rewarded with, token by token, and how much better than expected that was.

Padding carries a mask of 0: it gets no reward and no advantage, and takes no part in a mean.

Legend: B batch, T length.
"""

import jax
import jax.numpy as jnp

KL_ESTIMATORS = ("k1", "k2", "k3")


def token_kl(
    log_probs: jax.Array, reference_log_probs: jax.Array, estimator: str = "k1"
) -> jax.Array:
    """Returns an estimate of KL(policy || reference) from one drawn token each.

    With d = log p - log q: k1 is d, unbiased and of either sign; k2 is d^2 / 2; k3 is
    exp(-d) - 1 + d, unbiased and never negative (http://joschu.net/blog/kl-approx.html).

    Args:
      log_probs: of the tokens under the policy that drew them, any shape.
      reference_log_probs: of the same tokens under the reference.
      estimator: one of KL_ESTIMATORS.

    Raises:
      ValueError: there is no such estimator.
    """
    difference = log_probs - reference_log_probs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return jnp.square(difference) / 2
    if estimator == "k3":
        return jnp.expm1(-difference) + difference
    raise ValueError(f"estimator = {estimator!r}: must be one of {KL_ESTIMATORS}")


def token_rewards(
    kl_BT: jax.Array, scores_B: jax.Array, mask_BT: jax.Array, kl_coefficient: jax.Array | float
) -> jax.Array:
    """Returns [B, T] in fp32: -coefficient * KL at each token, and the score at the last one.

    Args:
      kl_BT: of each token, see `token_kl`.
      scores_B: the reward model's, of whole responses.
      mask_BT: 1 for tokens of the response.
      kl_coefficient: 0.01 in arXiv 2403.17297, section 4.2.
    """
    counted_BT = jnp.cumsum(mask_BT, axis=1)
    is_last_BT = (mask_BT > 0) & (counted_BT == counted_BT[:, -1:])
    at_end_BT = jnp.where(is_last_BT, scores_B[:, None], 0)
    return jnp.where(mask_BT > 0, at_end_BT - kl_coefficient * kl_BT, 0)


def generalized_advantages(
    rewards_BT: jax.Array,
    values_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    discount: float,
    trace_decay: float,
) -> jax.Array:
    """Returns generalized advantage estimates [B, T], 0 outside the mask (arXiv 1506.02438).

    A_t = delta_t + discount * trace_decay * A_{t+1}, with
    delta_t = r_t + discount * V_{t+1} - V_t; after the last token of a response V and A are 0.

    Args:
      rewards_BT: for emitting each token.
      values_BT: what is expected from there on, before the token is emitted.
      mask_BT: 1 for tokens of the response, which are next to each other.
      discount: of rewards, gamma.
      trace_decay: of the sum of deltas, lambda; 0.99 in arXiv 2403.17297, section 4.2.
    """
    mask_BT = mask_BT.astype(rewards_BT.dtype)
    values_BT = values_BT * mask_BT
    next_BT = jnp.pad(values_BT[:, 1:], ((0, 0), (0, 1)))
    deltas_BT = (rewards_BT + discount * next_BT - values_BT) * mask_BT

    def before(
        advantage_B: jax.Array, at: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        delta_B, mask_B = at
        advantage_B = (delta_B + discount * trace_decay * advantage_B) * mask_B
        return advantage_B, advantage_B

    start_B = jnp.zeros_like(deltas_BT[:, 0])
    _, advantages_TB = jax.lax.scan(before, start_B, (deltas_BT.T, mask_BT.T), reverse=True)
    return advantages_TB.T


def whiten(x: jax.Array, mask: jax.Array, *, shift_mean: bool = True) -> jax.Array:
    """Returns x with mean 0 (unless the mean is kept) and variance 1 over the mask, 0 outside.

    The variance is the biased one, and 1e-8 is added to it.
    """
    count = jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(x * mask) / count
    variance = jnp.sum(jnp.square(x - mean) * mask) / count
    white = (x - mean) * jax.lax.rsqrt(variance + 1e-8)
    return (white if shift_mean else white + mean) * mask
