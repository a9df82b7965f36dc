"""Attention by kernels that others wrote, for GPUs and TPUs, behind this code's conventions.

Which of them is used, and when, is decided in `ops.attention`.

Legend: B batch, T tokens, N query heads, K key and value heads, G = N / K, H head dim.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5x_style.parallel import remat

TRITON_BLOCK = 128
TRITON_BACKWARD_BLOCK = 64

_SPLASH_LANES = 128
_SPLASH_BLOCKS = (512, 256, 128)
# Segment of the tokens that fill up the last block; it only sees itself.
_FILL = jnp.iinfo(jnp.int32).min


def cudnn_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    *,
    causal: bool,
    library: str = "cudnn",
) -> jax.Array:
    """Returns attention by `jax.nn.dot_product_attention`, [B, T, N, H].

    That function knows no segments: they are handed to it as a mask, which takes T^2 bytes and more
    for each row. Its log-sum-exp cannot be named, so rematerialisation runs its forward pass again.

    Args:
      q_BTNH, k_BTKH, v_BTKH: queries, keys and values of the same tokens, 16 bit for cuDNN.
      segments_BT: int32 segment of each token; None if all are one segment.
      causal: whether keys after the query are hidden.
      library: "cudnn", or "xla" for the same mathematics where there is no GPU.
    """
    q_BTNH, k_BTKH, v_BTKH = (checkpoint_name(x, remat.QKV) for x in (q_BTNH, k_BTKH, v_BTKH))
    mask = None
    if segments_BT is not None:
        mask = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
    out_BTNH = jax.nn.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        mask=mask,
        is_causal=causal,
        implementation=library,  # type: ignore[reportArgumentType]
    )
    return checkpoint_name(out_BTNH, remat.ATTENTION)  # type: ignore[reportReturnType]


def triton_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    *,
    causal: bool,
    interpret: bool = False,
) -> jax.Array:
    """Returns attention by JAX's flash attention in Triton for GPUs, [B, T, N, H].

    Segments are compared inside the kernel, so memory grows with T alone. The kernel knows no
    groups of heads: keys and values are repeated for it.

    Args:
      q_BTNH, k_BTKH, v_BTKH: queries, keys and values of the same tokens; T a multiple of
        TRITON_BLOCK, H a power of two.
      segments_BT: int32 segment of each token; None if all are one segment.
      causal: whether keys after the query are hidden.
      interpret: whether to run the kernels' programs without a GPU, slowly.
    """
    # For GPUs alone, and slow to import.
    from jax.experimental.pallas.ops.gpu import attention as triton

    q_BTNH, k_BTKH, v_BTKH = (checkpoint_name(x, remat.QKV) for x in (q_BTNH, k_BTKH, v_BTKH))
    groups = q_BTNH.shape[2] // k_BTKH.shape[2]
    k_BTNH, v_BTNH = (jnp.repeat(x, groups, axis=2) for x in (k_BTKH, v_BTKH))
    out_BTNH = triton.mha(
        q_BTNH,
        k_BTNH,
        v_BTNH,
        segments_BT,
        sm_scale=q_BTNH.shape[-1] ** -0.5,
        causal=causal,
        block_sizes=triton.BlockSizes(
            block_q=TRITON_BLOCK,
            block_k=TRITON_BLOCK,
            block_q_dkv=TRITON_BACKWARD_BLOCK,
            block_kv_dkv=TRITON_BACKWARD_BLOCK,
            block_q_dq=TRITON_BACKWARD_BLOCK,
            block_kv_dq=TRITON_BACKWARD_BLOCK,
        ),
        interpret=interpret,
    )
    return checkpoint_name(out_BTNH, remat.ATTENTION)  # type: ignore[reportReturnType]


def splash_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    *,
    causal: bool,
    interpret: bool = False,
) -> jax.Array:
    """Returns attention by JAX's splash kernels for TPU, [B, T, N, H].

    Args:
      q_BTNH, k_BTKH, v_BTKH: queries, keys and values of the same tokens.
      segments_BT: int32 segment of each token; None if all are one segment.
      causal: whether keys after the query are hidden.
      interpret: whether to run the kernels' programs without a TPU, slowly.
    """
    # For TPUs alone, and slow to import.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    batch, length, num_heads, head_dim = q_BTNH.shape
    kv_heads = k_BTKH.shape[2]
    padded_length = -(-length // _SPLASH_LANES) * _SPLASH_LANES
    padded_head_dim = -(-head_dim // _SPLASH_LANES) * _SPLASH_LANES

    def by_head(x_BTNH):
        """[B, K, N / K, T, H], whole lanes."""
        widths = ((0, 0), (0, padded_length - length), (0, 0), (0, padded_head_dim - head_dim))
        x_BTNH = jnp.pad(x_BTNH, widths)
        x_BTKGH = x_BTNH.reshape(batch, padded_length, kv_heads, -1, padded_head_dim)
        return checkpoint_name(x_BTKGH.transpose(0, 2, 3, 1, 4), remat.QKV)

    # The kernel does not scale the scores.
    q_BKGTH = by_head(q_BTNH * jnp.asarray(head_dim**-0.5, q_BTNH.dtype))
    k_BKTH, v_BKTH = (by_head(x)[:, :, 0] for x in (k_BTKH, v_BTKH))
    if segments_BT is None:
        segments_BT = jnp.zeros((batch, length), jnp.int32)
    fill = ((0, 0), (0, padded_length - length))
    segments_BT = jnp.pad(segments_BT, fill, constant_values=_FILL)
    block = next(size for size in _SPLASH_BLOCKS if padded_length % size == 0)
    square = (padded_length, padded_length)
    mask = splash.CausalMask(square) if causal else splash.FullMask(square)
    kernel = splash.make_splash_mqa_single_device(
        splash.MultiHeadMask([mask] * (num_heads // kv_heads)),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        residual_checkpoint_name=remat.ATTENTION,
        interpret=interpret,
    )
    over_heads = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out_BKGTH: Any = jax.vmap(over_heads)(
        q_BKGTH, k_BKTH, v_BKTH, splash.SegmentIds(segments_BT, segments_BT)
    )
    out_BTNH = out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(batch, padded_length, num_heads, -1)
    return out_BTNH[:, :length, :, :head_dim].astype(q_BTNH.dtype)
