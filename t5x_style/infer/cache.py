"""Keys and values of the tokens so far, laid out for attention from one token at a time.

Legend: B batch, T new tokens, S slots, N query heads, K key and value heads, G = N / K, H head dim.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from t5x_style.ops import attention


class KeyValues(NamedTuple):
    """One layer's cache. Either product of attention then reads memory in its own order."""

    k_BKHS: jax.Array
    v_BKSH: jax.Array


@dataclasses.dataclass(frozen=True)
class PromptCache:
    """Takes in whole prompts, whose tokens attend to one another as in training.

    Attributes:
      segment_ids_BT: int32, 1 for the prompt, 0 for padding.
      num_slots: slots to lay out, the T first of which the prompt fills.
      implementation: of `ops.attention.attend`.
      block_tokens: of `ops.attention.attend`.
      kept: the keys and values, once `attend` has been called.
    """

    segment_ids_BT: jax.Array
    num_slots: int
    implementation: str | None = None
    block_tokens: int | None = None
    kept: KeyValues | None = None

    def attend(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array
    ) -> tuple[jax.Array, "PromptCache"]:
        """Returns causal attention within the prompts, and the filled cache."""
        out_BTNH = attention.attend(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            q_segments_BT=self.segment_ids_BT,
            k_segments_BS=self.segment_ids_BT,
            implementation=self.implementation,
            block_tokens=self.block_tokens,
        )
        free = (0, self.num_slots - k_BTKH.shape[1])
        kept = KeyValues(
            jnp.pad(k_BTKH.transpose(0, 2, 3, 1), ((0, 0), (0, 0), (0, 0), free)),
            jnp.pad(v_BTKH.transpose(0, 2, 1, 3), ((0, 0), (0, 0), free, (0, 0))),
        )
        return out_BTNH, dataclasses.replace(self, kept=kept)


@dataclasses.dataclass(frozen=True)
class TokenCache:
    """Takes in one token of each row.

    Attributes:
      kept: keys and values of earlier slots.
      slot: int32 scalar, the slot that the token gets.
      is_visible_BS: bool, the slots that the token sees, its own included.
    """

    kept: KeyValues
    slot: jax.Array
    is_visible_BS: jax.Array

    def attend(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array
    ) -> tuple[jax.Array, "TokenCache"]:
        """Returns attention from the token to all visible slots, and the cache with its own."""
        batch, length, num_heads, head_dim = q_BTNH.shape
        assert length == 1
        kv_heads = k_BTKH.shape[2]
        kept = KeyValues(
            lax.dynamic_update_slice_in_dim(
                self.kept.k_BKHS, k_BTKH.transpose(0, 2, 3, 1), self.slot, axis=3
            ),
            lax.dynamic_update_slice_in_dim(
                self.kept.v_BKSH, v_BTKH.transpose(0, 2, 1, 3), self.slot, axis=2
            ),
        )
        wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
        q_BKGH = q_BTNH.reshape(batch, kv_heads, num_heads // kv_heads, head_dim)
        scores_BKGS = jnp.einsum(
            "bkgh,bkhs->bkgs", q_BKGH, kept.k_BKHS, preferred_element_type=wide
        )
        visible = self.is_visible_BS[:, None, None, :]
        scores_BKGS = jnp.where(visible, scores_BKGS * head_dim**-0.5, -jnp.inf)
        weights_BKGS = jax.nn.softmax(scores_BKGS, axis=-1).astype(q_BTNH.dtype)
        out_BKGH = jnp.einsum(
            "bkgs,bksh->bkgh", weights_BKGS, kept.v_BKSH, preferred_element_type=wide
        )
        out_BTNH = out_BKGH.reshape(q_BTNH.shape).astype(q_BTNH.dtype)
        return out_BTNH, dataclasses.replace(self, kept=kept)
