"""Keys and values of the tokens so far, laid out for attention from one token at a time.

Over a mesh with a `seq` axis the slots are cut: a prompt need not fit one device.

Legend: B batch, R prompts that are taken in, T new tokens, S slots, N query heads, K key and value
heads, G = N / K, H head dim.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from t5x_style.models.config import TransformerConfig
from t5x_style.ops import attention
from t5x_style.parallel import sequence
from t5x_style.parallel.islands import on_each_device
from t5x_style.parallel.ring_attention import Marks
from t5x_style.parallel.rules import axis_size, constrain, sharding_of

_KEYS = ("act_batch", "act_heads", "act_head_dim", "act_length")
_VALUES = ("act_batch", "act_heads", "act_length", "act_head_dim")


class KeyValues(NamedTuple):
    """One layer's cache. Either product of attention then reads memory in its own order."""

    k_BKHS: jax.Array
    v_BKSH: jax.Array


def abstract_cache(
    config: TransformerConfig, num_rows: int, num_slots: int, mesh: Mesh
) -> KeyValues:
    """Returns the shapes, dtypes and shardings of one layer's cache."""
    shape, dtype = (num_rows, config.num_kv_heads), jnp.dtype(config.dtype)

    def array(shape: tuple[int, ...], names: tuple[str, ...]) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding_of(names, shape, mesh))

    return KeyValues(
        array((*shape, config.head_dim, num_slots), _KEYS),
        array((*shape, num_slots, config.head_dim), _VALUES),
    )


def empty_cache(config: TransformerConfig, num_rows: int, num_slots: int) -> KeyValues:
    """Returns one layer's cache of zeros, laid over the mesh in use."""
    shape, dtype = (num_rows, config.num_kv_heads), jnp.dtype(config.dtype)
    return KeyValues(
        constrain(jnp.zeros((*shape, config.head_dim, num_slots), dtype), *_KEYS),
        constrain(jnp.zeros((*shape, num_slots, config.head_dim), dtype), *_VALUES),
    )


def put_rows(kept: KeyValues, new: KeyValues, rows_R: jax.Array) -> KeyValues:
    """Puts whole rows of slots into a layer's cache.

    Args:
      kept: B rows.
      new: R rows of as many slots.
      rows_R: int32, the place of each; those from B on are left out.
    """
    put = functools.partial(on_each_device, _put_rows)
    num_rows = kept.k_BKHS.shape[0]
    args = (kept.k_BKHS, kept.v_BKSH, new.k_BKHS, new.v_BKSH, rows_R, jnp.arange(num_rows))
    whole_keys, whole_values = (None, *_KEYS[1:]), (None, *_VALUES[1:])
    names = (_KEYS, _VALUES, whole_keys, whole_values, (None,), ("act_batch",))
    return KeyValues(*put(args, names, tuple(x.shape for x in kept), (_KEYS, _VALUES)))


def take_rows(kept: KeyValues, rows_R: jax.Array) -> KeyValues:
    """Returns the given rows of a layer's cache."""
    return KeyValues(*(jnp.take(x, rows_R, axis=0, mode="clip") for x in kept))


def _put_rows(k_BKHS, v_BKSH, new_k_RKHS, new_v_RKSH, rows_R, numbers_B):
    """Puts those rows that lie on this device, whose own rows have the numbers given."""
    places_R = rows_R - numbers_B[0]
    places_R = jnp.where(places_R < 0, len(numbers_B), places_R)
    return (
        k_BKHS.at[places_R].set(new_k_RKHS, mode="drop"),
        v_BKSH.at[places_R].set(new_v_RKSH, mode="drop"),
    )


@dataclasses.dataclass(frozen=True)
class PromptCache:
    """Takes in whole prompts, whose tokens attend to one another as in training.

    Attributes:
      segment_ids_BT: int32, 1 for the prompt, 0 for padding.
      free_slots: how many to lay out before those that the prompt fills, and after them.
      implementation: of `ops.attention.attend`.
      block_tokens: of `ops.attention.attend`.
      head_exchange: of `ops.attention.attend`.
      kept: the keys and values, once `attend` has been called.
    """

    segment_ids_BT: jax.Array
    free_slots: tuple[int, int]
    implementation: str | None = None
    block_tokens: int | None = None
    head_exchange: int | None = None
    kept: KeyValues | None = None

    def attend(
        self, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array
    ) -> tuple[jax.Array, "PromptCache"]:
        """Returns causal attention within the prompts, and the filled cache."""
        marks = Marks(segments_BT=self.segment_ids_BT)
        out_BTNH = attention.attend(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            marks,
            marks,
            implementation=self.implementation,
            block_tokens=self.block_tokens,
            head_exchange=self.head_exchange,
        )
        none, free = (0, 0), self.free_slots
        k_BKHS = jnp.pad(k_BTKH.transpose(0, 2, 3, 1), (none, none, none, free))
        v_BKSH = jnp.pad(v_BTKH.transpose(0, 2, 1, 3), (none, none, free, none))
        kept = KeyValues(constrain(k_BKHS, *_KEYS), constrain(v_BKSH, *_VALUES))
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
        q_BKGH = q_BTNH.reshape(batch, kv_heads, num_heads // kv_heads, head_dim)
        of_queries = ("act_batch", "act_heads", "act_heads", "act_head_dim")
        of_token = ("act_batch", None, "act_heads", "act_head_dim")
        pieces = axis_size(sequence.AXIS)
        is_cut = self.is_visible_BS.shape[1] % pieces == 0 and pieces > 1
        out_BKGH, *kept = on_each_device(
            functools.partial(_attend_from_one, is_cut=is_cut),
            (q_BKGH, k_BTKH, v_BTKH, *self.kept, self.slot, self.is_visible_BS),
            (of_queries, of_token, of_token, _KEYS, _VALUES, (), ("act_batch", "act_length")),
            (q_BKGH.shape, *(x.shape for x in self.kept)),
            (of_queries, _KEYS, _VALUES),
        )
        return out_BKGH.reshape(q_BTNH.shape), dataclasses.replace(self, kept=KeyValues(*kept))


def _attend_from_one(q_BKGH, k_BTKH, v_BTKH, k_BKHS, v_BKSH, slot, is_visible_BS, *, is_cut):
    """Puts one token into the cache and attends from it to this device's slots, all or a piece.

    Pieces are joined by two sums over devices, of the exponentials and of the weighted values.
    """
    num_slots = is_visible_BS.shape[1]
    if is_cut:
        slot = slot - jax.lax.axis_index(sequence.AXIS) * num_slots
    k_BKHS = _put(k_BKHS, k_BTKH.transpose(0, 2, 3, 1), slot, axis=3, may_miss=is_cut)
    v_BKSH = _put(v_BKSH, v_BTKH.transpose(0, 2, 1, 3), slot, axis=2, may_miss=is_cut)
    wide = jnp.promote_types(q_BKGH.dtype, jnp.float32)
    scores_BKGS = jnp.einsum("bkgh,bkhs->bkgs", q_BKGH, k_BKHS, preferred_element_type=wide)
    visible = is_visible_BS[:, None, None, :]
    scores_BKGS = jnp.where(visible, scores_BKGS * q_BKGH.shape[-1] ** -0.5, -jnp.inf)
    top_BKG1 = jnp.max(scores_BKGS, axis=-1, keepdims=True)
    top_BKG1 = lax.pmax(top_BKG1, sequence.AXIS) if is_cut else top_BKG1
    p_BKGS = jnp.exp(scores_BKGS - top_BKG1)
    total_BKG1 = jnp.sum(p_BKGS, axis=-1, keepdims=True)
    total_BKG1 = lax.psum(total_BKG1, sequence.AXIS) if is_cut else total_BKG1
    weights_BKGS = (p_BKGS / total_BKG1).astype(q_BKGH.dtype)
    out_BKGH = jnp.einsum("bkgs,bksh->bkgh", weights_BKGS, v_BKSH, preferred_element_type=wide)
    out_BKGH = lax.psum(out_BKGH, sequence.AXIS) if is_cut else out_BKGH
    return out_BKGH.astype(q_BKGH.dtype), k_BKHS, v_BKSH


def _put(cache, token, slot, *, axis, may_miss):
    """Writes one slot of a cache; with `may_miss` nothing where it lies on another device."""
    if may_miss:
        is_here = (slot >= 0) & (slot < cache.shape[axis])
        slot = jnp.clip(slot, 0, cache.shape[axis] - 1)
        token = jnp.where(is_here, token, lax.dynamic_slice_in_dim(cache, slot, 1, axis=axis))
    return lax.dynamic_update_slice_in_dim(cache, token, slot, axis=axis)
