"""Attention a block at a time, on one device or around a ring of them.

Legend: B batch, T queries, S keys, N query heads, K key and value heads, G = N / K, H head dim.
"""

from typing import Any

import jax

from t5x_style.ops.blockwise import Blockwise
from t5x_style.parallel.ring_attention import Marks, Ring, ring_attention


def blockwise_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    q_marks: Marks = Marks(),  # noqa: B008
    k_marks: Marks = Marks(),  # noqa: B008
    *,
    causal: bool = True,
    block_tokens: int | None = None,
    ring: Ring = Ring(),  # noqa: B008
) -> tuple[jax.Array, jax.Array]:
    """Returns attention and its log-sum-exp; see `ops.attention.attend`.

    Args:
      q_BTNH, k_BSKH, v_BSKH: queries, keys, values: those of this device.
      q_marks, k_marks: their marks.
      causal: whether keys after the query are hidden.
      block_tokens: block length; None chooses by size.
      ring: devices over which keys and values are cut, each having two runs of the order.

    Returns:
      out [B, T, N, H] in the dtype of q, and lse [B, T, N] in fp32 (fp64 for fp64 input): the log
      of the sum of exponentials of a query's visible scores. A query that sees no key has
      out 0 and lse HIDDEN_SCORE.
    """
    batch, length, num_heads, head_dim = q_BTNH.shape
    kv_heads = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(batch, length, kv_heads, num_heads // kv_heads, head_dim)
    q_BKGTH = q_BTKGH.transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = (x.transpose(0, 2, 1, 3) for x in (k_BSKH, v_BSKH))
    kernel = Blockwise.of(
        q_BKGTH,
        k_BSKH.shape[1],
        causal=causal,
        block_tokens=block_tokens,
        num_runs=1 if ring.size == 1 else 2,
    )
    result: Any = ring_attention(q_BKGTH, k_BKSH, v_BKSH, q_marks, k_marks, kernel, ring)
    out_BKGTH, lse_BKGT = result
    out_BTNH = out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape)
    return out_BTNH, lse_BKGT.transpose(0, 3, 1, 2).reshape(batch, length, num_heads)
