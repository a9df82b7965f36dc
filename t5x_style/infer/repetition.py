"""Logits held down for what a row has said already, and stop ids held back at its beginning.

Legend: B batch, P prompt slots, N slots of the ring of new tokens, S = P + N, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_BANNED_LOGIT = -1e30


class History(NamedTuple):
    """What each row consists of so far.

    Attributes:
      prompt_tokens_BP: int32, padded on the left; P may be 0, for new tokens alone.
      num_prompt_tokens_B: int32 length of each prompt.
      tokens_BN: int32 new tokens; the latest is in column step - 1 modulo N.
      num_tokens_B: int32, how many there are.
      step: int32 scalar, the column of the next, before it is taken modulo N.
      stop_ids: int32 [any], ids that end a row; -1 for none.
    """

    prompt_tokens_BP: jax.Array
    num_prompt_tokens_B: jax.Array
    tokens_BN: jax.Array
    num_tokens_B: jax.Array
    step: jax.Array
    stop_ids: jax.Array

    @property
    def in_order(self) -> tuple[jax.Array, jax.Array]:
        """Ids [B, S] with prompt and new tokens side by side, and which of them are real."""
        num_slots, num_columns = self.prompt_tokens_BP.shape[1], self.tokens_BN.shape[1]
        places_N = jnp.arange(num_columns)
        columns_BN = (self.step - self.num_tokens_B[:, None] + places_N) % num_columns
        tokens_BN = jnp.take_along_axis(self.tokens_BN, columns_BN, axis=1)
        is_prompt_BP = jnp.arange(num_slots) >= num_slots - self.num_prompt_tokens_B[:, None]
        is_new_BN = places_N < self.num_tokens_B[:, None]
        return (
            jnp.concatenate([self.prompt_tokens_BP, tokens_BN], axis=1),
            jnp.concatenate([is_prompt_BP, is_new_BN], axis=1),
        )


def penalized(logits_BV: jax.Array, history: History, penalty: jax.Array) -> jax.Array:
    """Divides positive logits of tokens that were said by the penalty, and multiplies others by it.

    The rule of CTRL (arXiv 1909.05858, section 4.1), with the sign looked at, as is usual since.

    Args:
      logits_BV: fp32.
      history: what was said.
      penalty: scalar; above 1 to avoid repetition, below 1 to seek it.
    """
    ids_BS, is_real_BS = history.in_order
    said_BS = jnp.take_along_axis(logits_BV, ids_BS, axis=-1)
    said_BS = jnp.where(said_BS > 0, said_BS / penalty, said_BS * penalty)
    return _put(logits_BV, ids_BS, is_real_BS, said_BS)


def without_repeated_ngrams(logits_BV: jax.Array, history: History, length: int) -> jax.Array:
    """Bans the tokens that would end an n-gram which the row holds already (arXiv 1705.04304, 2.5).

    Args:
      logits_BV: fp32.
      history: what was said.
      length: n.
    """
    ids_BS, is_real_BS = history.in_order
    ends_B1 = history.prompt_tokens_BP.shape[1] + history.num_tokens_B[:, None]
    is_repeated_BS = is_real_BS
    for back in range(1, length):
        latest_B1 = jnp.take_along_axis(ids_BS, jnp.maximum(ends_B1 - back, 0), axis=1)
        is_same_BS = is_real_BS & (ids_BS == latest_B1)
        shifted_BS = jnp.pad(is_same_BS, ((0, 0), (back, 0)))[:, : ids_BS.shape[1]]
        is_repeated_BS &= shifted_BS & (ends_B1 >= back)
    return _put(logits_BV, ids_BS, is_repeated_BS, _BANNED_LOGIT)


def without_early_stops(logits_BV: jax.Array, history: History, least: jax.Array) -> jax.Array:
    """Bans the stop ids in rows that have fewer new tokens than `least`."""
    shape = (logits_BV.shape[0], len(history.stop_ids))
    is_early_B1 = history.num_tokens_B[:, None] < least
    is_banned = is_early_B1 & (history.stop_ids >= 0)
    return _put(logits_BV, jnp.broadcast_to(history.stop_ids, shape), is_banned, _BANNED_LOGIT)


def _put(
    logits_BV: jax.Array, ids_BS: jax.Array, is_meant_BS: jax.Array, values: jax.Array | float
) -> jax.Array:
    rows_B1 = jnp.arange(logits_BV.shape[0])[:, None]
    places_BS = jnp.where(is_meant_BS, ids_BS, logits_BV.shape[1])
    return logits_BV.at[rows_B1, places_BS].set(values, mode="drop")
