"""Scaled dot-product attention behind one function, with implementations chosen by platform.

    name       runs on    packed rows               made for
    splash     TPU        yes                       training on TPUs
    cudnn      GPU        up to MASK_TOKENS tokens  training on GPUs in 16 bit
    triton     GPU        yes                       longer packed rows on GPUs in 16 bit
    blockwise  anything   yes                       CPUs, other precisions, other orders of keys
    reference  anything   yes                       tests: holds the whole score matrix

Rows that are cut over the mesh's `seq` axis are attended to as `parallel.sequence` says: whole rows
of some heads by any of these, a ring by the blockwise one.

Legend: B batch, T queries, S keys, N query heads, K key and value heads, G = N / K, H head dim.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from t5x_style.ops.attention_kernels import (
    TRITON_BLOCK,
    cudnn_attention,
    splash_attention,
    triton_attention,
)
from t5x_style.ops.blockwise_attention import blockwise_attention
from t5x_style.parallel.islands import on_each_device
from t5x_style.parallel.mesh import platform
from t5x_style.parallel.ring_attention import HIDDEN_SCORE, Marks, Ring
from t5x_style.parallel.sequence import SequenceSharding, sharding_of_rows

# cuDNN is given packed rows as a mask of [T, S] for each row, so not at any length.
MASK_TOKENS = 8192


@dataclasses.dataclass(frozen=True)
class _Call:
    """One device's part of a call of `attend`."""

    q_BTNH: jax.Array
    k_BSKH: jax.Array
    v_BSKH: jax.Array
    q_marks: Marks
    k_marks: Marks
    causal: bool = True
    block_tokens: int | None = None
    ring: Ring = Ring()  # noqa: RUF009

    @property
    def is_within_one_array(self) -> bool:
        """Whether queries and keys are the same tokens, in the order in which they lie."""
        same_length = self.q_BTNH.shape[1] == self.k_BSKH.shape[1]
        return same_length and self.q_marks.order_BT is None and self.ring.size == 1


@dataclasses.dataclass(frozen=True)
class _Implementation:
    """A way to compute attention.

    Attributes:
      run: from a call to [B, T, N, H].
      platforms: those that it is made for; None for any.
      refusal: why it cannot do a call, None if it can.
    """

    run: Callable[[_Call], jax.Array]
    platforms: tuple[str, ...] | None = None
    refusal: Callable[[_Call], str | None] = lambda call: None

    @property
    def is_available(self) -> bool:
        """Whether it runs on the platform in use."""
        return self.platforms is None or platform() in self.platforms


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    q_marks: Marks = Marks(),  # noqa: B008
    k_marks: Marks = Marks(),  # noqa: B008
    *,
    causal: bool = True,
    implementation: str | None = None,
    block_tokens: int | None = None,
    head_exchange: int | None = None,
) -> jax.Array:
    """Returns `softmax(q k^T / sqrt(H)) v` over the keys that each query may see.

    A query sees a key of its own segment that, if causal, is not after it. Query head n reads key
    and value head n // G; keys and values are never repeated in memory. Rows, positions and heads
    are cut over the mesh in use as the rules say, and each device computes its own.

    Args:
      q_BTNH, k_BSKH, v_BSKH: queries, keys, values.
      q_marks, k_marks: segments and causal order of the queries and of the keys. Where the order
        is None it is that in the array, which is what packed rows need and which is faster. Where
        queries and keys are the same tokens the two are the same.
      causal: whether keys after the query are hidden.
      implementation: one of `available()`; None chooses by platform and by what the call needs.
      block_tokens: block length of the blockwise implementation; None chooses by size.
      head_exchange: devices among which heads change places with positions where rows are cut, see
        `parallel.sequence`; None for as many as possible.

    Returns:
      [B, T, N, H], dtype of q. A query that sees no key gets zeros.

    Raises:
      ValueError: the implementation is unknown, not available on this platform, or cannot do this.
    """
    batch, length, num_heads, head_dim = q_BTNH.shape
    kv_heads = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(batch, length, kv_heads, num_heads // kv_heads, head_dim)
    rows = SequenceSharding()
    if length == k_BSKH.shape[1]:
        rows = sharding_of_rows(kv_heads, num_heads // kv_heads, head_exchange)
        if length % rows.size:
            rows = SequenceSharding()

    def local(q_BTKGH, k_BSKH, v_BSKH, *marks):
        q_BTKGH, k_BSKH, v_BSKH = rows.to_heads(q_BTKGH, k_BSKH, v_BSKH)
        q_marks, k_marks = (
            Marks(*(rows.of_group(x) for x in two)) for two in (marks[:2], marks[2:])
        )
        if rows.ring.size > 1 and causal and q_marks.order_BT is None:
            places_BT = rows.places(q_BTKGH.shape[1])
            q_marks, k_marks = (x._replace(order_BT=places_BT) for x in (q_marks, k_marks))
        batch, length, kv_heads, groups, head_dim = q_BTKGH.shape
        q_BTNH = q_BTKGH.reshape(batch, length, kv_heads * groups, head_dim)
        call = _Call(q_BTNH, k_BSKH, v_BSKH, q_marks, k_marks, causal, block_tokens, rows.ring)
        out_BTNH = _choose(implementation, call).run(call)
        return (rows.to_positions(out_BTNH.reshape(q_BTKGH.shape)),)

    # Key and value heads take the mesh axes that divide them, the queries of one head the rest.
    cut = "act_length" if rows.size > 1 else None
    q_names = ("act_batch", cut, "act_heads", "act_heads", "act_head_dim")
    kv_names = ("act_batch", cut, "act_heads", "act_head_dim")
    marks = (*q_marks, *k_marks)
    (out_BTKGH,) = on_each_device(
        local,
        (q_BTKGH, k_BSKH, v_BSKH, *marks),
        (q_names, kv_names, kv_names, *[("act_batch", cut)] * len(marks)),
        (q_BTKGH.shape,),
        (q_names,),
    )
    return out_BTKGH.reshape(q_BTNH.shape)


def available() -> tuple[str, ...]:
    """Returns the names of the implementations that run on the platform in use."""
    return tuple(name for name, it in _IMPLEMENTATIONS.items() if it.is_available)


def _choose(name: str | None, call: _Call) -> _Implementation:
    if name is None:
        kernels = (it for it in _IMPLEMENTATIONS.values() if it.platforms and it.is_available)
        fitting = (it for it in kernels if it.refusal(call) is None)
        return next(fitting, _IMPLEMENTATIONS["blockwise"])
    if name not in available():
        known = _IMPLEMENTATIONS.get(name)
        what = f"runs on {known.platforms}" if known else "is unknown"
        raise ValueError(
            f"attention implementation {name!r} {what}; on this platform, {platform()}, there are "
            f"{available()}: set config.TransformerConfig.attention to one of them, or to None to "
            "choose by platform"
        )
    reason = _IMPLEMENTATIONS[name].refusal(call)
    if reason is not None:
        raise ValueError(
            f"attention implementation {name!r} cannot be used here: {reason}; set "
            f"config.TransformerConfig.attention to another of {available()}, or to None"
        )
    return _IMPLEMENTATIONS[name]


def _blockwise(call: _Call) -> jax.Array:
    return blockwise_attention(
        call.q_BTNH,
        call.k_BSKH,
        call.v_BSKH,
        call.q_marks,
        call.k_marks,
        causal=call.causal,
        block_tokens=call.block_tokens,
        ring=call.ring,
    )[0]


def _reference(call: _Call) -> jax.Array:
    q_BTNH, k_BSKH, v_BSKH = call.q_BTNH, call.k_BSKH, call.v_BSKH
    batch, length, num_heads, head_dim = q_BTNH.shape
    num_keys, kv_heads = k_BSKH.shape[1:3]
    wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    q_BTKGH = q_BTNH.reshape(batch, length, kv_heads, num_heads // kv_heads, head_dim)
    scores = jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH, preferred_element_type=wide)
    visible_BTS = jnp.ones((1, length, num_keys), bool)
    if call.causal:
        q_order, k_order = call.q_marks.order_BT, call.k_marks.order_BT
        q_order = jnp.arange(length)[None] if q_order is None else q_order
        k_order = jnp.arange(num_keys)[None] if k_order is None else k_order
        visible_BTS = visible_BTS & (q_order[:, :, None] >= k_order[:, None, :])
    q_segments, k_segments = call.q_marks.segments_BT, call.k_marks.segments_BT
    if q_segments is not None and k_segments is not None:
        visible_BTS = visible_BTS & (q_segments[:, :, None] == k_segments[:, None, :])
    visible = visible_BTS[:, None, None]
    scores = jnp.where(visible, scores * head_dim**-0.5, HIDDEN_SCORE)
    p = jnp.where(visible, jax.nn.softmax(scores, axis=-1), 0)
    out = jnp.einsum("bkgts,bskh->btkgh", p.astype(v_BSKH.dtype), v_BSKH)
    return out.reshape(q_BTNH.shape).astype(q_BTNH.dtype)


def _reference_refusal(call: _Call) -> str | None:
    return "the reference does not go around a ring" if call.ring.size > 1 else None


def _splash(call: _Call) -> jax.Array:
    return splash_attention(
        call.q_BTNH, call.k_BSKH, call.v_BSKH, call.q_marks.segments_BT, causal=call.causal
    )


def _splash_refusal(call: _Call) -> str | None:
    if not call.is_within_one_array:
        return "splash attention is for queries and keys of the same tokens in their own order"
    return None


def _cudnn(call: _Call) -> jax.Array:
    return cudnn_attention(
        call.q_BTNH, call.k_BSKH, call.v_BSKH, call.q_marks.segments_BT, causal=call.causal
    )


def _cudnn_refusal(call: _Call) -> str | None:
    length, head_dim = call.q_BTNH.shape[1], call.q_BTNH.shape[-1]
    if head_dim > 128 or head_dim % 8:
        return f"cuDNN attention wants a head dim that is a multiple of 8 up to 128, not {head_dim}"
    if (reason := _narrow_refusal("cuDNN", call)) is not None:
        return reason
    if call.q_marks.segments_BT is not None and length > MASK_TOKENS:
        return (
            f"packed rows of {length} tokens would need a mask of that square, and are limited to "
            f"{MASK_TOKENS} tokens"
        )
    return None


def _triton(call: _Call) -> jax.Array:
    return triton_attention(
        call.q_BTNH, call.k_BSKH, call.v_BSKH, call.q_marks.segments_BT, causal=call.causal
    )


def _triton_refusal(call: _Call) -> str | None:
    length, head_dim = call.q_BTNH.shape[1], call.q_BTNH.shape[-1]
    if head_dim not in (32, 64, 128):
        return f"Triton attention wants a head dim of 32, 64 or 128, not {head_dim}"
    if length % TRITON_BLOCK:
        return f"Triton attention wants a multiple of {TRITON_BLOCK} tokens, not {length}"
    return _narrow_refusal("Triton", call)


def _narrow_refusal(name: str, call: _Call) -> str | None:
    if call.q_BTNH.dtype not in (jnp.bfloat16, jnp.float16):
        return f"{name} attention is for bfloat16 and float16, not {call.q_BTNH.dtype}"
    if not call.is_within_one_array:
        return f"{name} attention is for queries and keys of the same tokens in their own order"
    return None


# In the order in which a platform's choice is made.
_IMPLEMENTATIONS = {
    "splash": _Implementation(_splash, ("tpu",), _splash_refusal),
    "cudnn": _Implementation(_cudnn, ("gpu", "cuda"), _cudnn_refusal),
    "triton": _Implementation(_triton, ("gpu", "cuda"), _triton_refusal),
    "blockwise": _Implementation(_blockwise),
    "reference": _Implementation(_reference, refusal=_reference_refusal),
}
