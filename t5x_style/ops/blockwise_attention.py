"""Attention computed a block of queries and keys at a time, in plain JAX, with its own gradient.

Memory grows with the length, not its square. Loops run over blocks of queries and keys, with trip
counts that follow the causal triangle and the segments of packed rows: blocks that no query can see
are not computed. The log-sum-exp is returned too, from which partial results over disjoint keys can
be merged (arXiv 2205.14135, section 3.1).

Legend: B batch, T queries, S keys, N query heads, K key and value heads, G = N / K, H head dim, U
and W lengths of one block of queries and of keys.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5x_style.parallel import remat

HIDDEN_SCORE = -1e30  # of a key that a query may not see; finite, so that no NaN can arise

# Scores of one pair of blocks, over all rows and heads. On CPUs about so many stay in the cache and
# still keep every core busy.
_BLOCK_SCORES = 400_000
_BLOCK_TOKENS = (64, 128, 256, 512)

# Segments that no token has: of the queries and keys that fill up the last block. They are the
# largest, as padding comes last, so that a block with some of it still sees few others.
_QUERY_FILL, _KEY_FILL, _PADDING = (jnp.iinfo(jnp.int32).max - i for i in range(3))


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is known of the work when it is traced; hashable, as custom_vjp asks.

    Attributes:
      causal: whether keys after the query are hidden.
      array_order: whether the causal order is the order in the array, queries and keys alike.
      q_block: U.
      k_block: W.
    """

    causal: bool
    array_order: bool
    q_block: int
    k_block: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Marks:
    """Integers that decide which query sees which key; None where they are not needed."""

    q_positions_BT: jax.Array | None
    k_positions_BS: jax.Array | None
    q_segments_BT: jax.Array | None
    k_segments_BS: jax.Array | None


def blockwise_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    q_positions_BT: jax.Array | None = None,
    k_positions_BS: jax.Array | None = None,
    q_segments_BT: jax.Array | None = None,
    k_segments_BS: jax.Array | None = None,
    causal: bool = True,
    block_tokens: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns attention and its log-sum-exp; see `ops.attention.attend` for the arguments.

    Returns:
      out [B, T, N, H] in the dtype of q, and lse [B, T, N] in fp32 (fp64 for fp64 input): the log
      of the sum of exponentials of a query's visible scores. A query that sees no key has
      out 0 and lse HIDDEN_SCORE.
    """
    batch, length, num_heads, _ = q_BTNH.shape
    num_keys = k_BSKH.shape[1]
    block = block_tokens or default_block_tokens(batch * num_heads)
    plan = _Plan(
        causal,
        array_order=q_positions_BT is None and length == num_keys,
        q_block=_even_block(length, block),
        k_block=_even_block(num_keys, block),
    )
    marks = _Marks(q_positions_BT, k_positions_BS, q_segments_BT, k_segments_BS)
    return _attend(q_BTNH, k_BSKH, v_BSKH, marks, plan)


def default_block_tokens(num_rows_and_heads: int) -> int:
    """Returns the block length for so many query heads of all rows together."""
    block = math.sqrt(_BLOCK_SCORES / num_rows_and_heads)
    return min(_BLOCK_TOKENS, key=lambda tokens: abs(math.log(tokens / block)))


def _even_block(length: int, block: int) -> int:
    """The least block length that needs no more blocks, so that little padding is computed."""
    return math.ceil(length / math.ceil(length / block))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BTNH, k_BSKH, v_BSKH, marks, plan):
    return _attend_fwd(q_BTNH, k_BSKH, v_BSKH, marks, plan)[0]


def _attend_fwd(q_BTNH, k_BSKH, v_BSKH, marks, plan):
    # Named here, where they are kept for the gradient: a policy that saves them needs no second
    # forward pass.
    q_BKGTH = checkpoint_name(_grouped(q_BTNH, k_BSKH.shape[2]), remat.QKV)
    k_BKSH = checkpoint_name(k_BSKH.transpose(0, 2, 1, 3), remat.QKV)
    v_BKSH = checkpoint_name(v_BSKH.transpose(0, 2, 1, 3), remat.QKV)
    out_BKGTH, lse_BKGT = _forward(q_BKGTH, k_BKSH, v_BKSH, marks, plan)
    out_BTNH = checkpoint_name(_ungrouped(out_BKGTH), remat.ATTENTION)
    lse_BKGT = checkpoint_name(lse_BKGT, remat.ATTENTION)
    lse_BTN = _ungrouped(lse_BKGT[..., None])[..., 0]
    return (out_BTNH, lse_BTN), (q_BKGTH, k_BKSH, v_BKSH, out_BTNH, lse_BKGT, marks)


def _attend_bwd(plan, residuals, cotangents):
    q_BKGTH, k_BKSH, v_BKSH, out_BTNH, lse_BKGT, marks = residuals
    d_out_BTNH, d_lse_BTN = cotangents
    wide = lse_BKGT.dtype
    # d_scores = p * (d_p - delta): the softmax's own term, and that of the log-sum-exp.
    delta_BTN = jnp.sum(d_out_BTNH.astype(wide) * out_BTNH.astype(wide), axis=-1) - d_lse_BTN
    kv_heads = k_BKSH.shape[1]
    d_q_BKGTH, d_k_BKSH, d_v_BKSH = _backward(
        q_BKGTH,
        k_BKSH,
        v_BKSH,
        _grouped(d_out_BTNH, kv_heads),
        lse_BKGT,
        _grouped(delta_BTN[..., None], kv_heads)[..., 0],
        marks,
        plan,
    )
    return (
        _ungrouped(d_q_BKGTH.astype(q_BKGTH.dtype)),
        d_k_BKSH.transpose(0, 2, 1, 3),
        d_v_BKSH.transpose(0, 2, 1, 3),
        None,
    )


_attend.defvjp(_attend_fwd, _attend_bwd)


def _grouped(x_BTNH, kv_heads):
    """Query heads grouped by the key and value head they read: [B, K, G, T, H]."""
    batch, length, num_heads, head_dim = x_BTNH.shape
    x_BTKGH = x_BTNH.reshape(batch, length, kv_heads, num_heads // kv_heads, head_dim)
    return x_BTKGH.transpose(0, 2, 3, 1, 4)


def _ungrouped(x_BKGTH):
    batch, kv_heads, groups, length, head_dim = x_BKGTH.shape
    return x_BKGTH.transpose(0, 3, 1, 2, 4).reshape(batch, length, kv_heads * groups, head_dim)


def _forward(q_BKGTH, k_BKSH, v_BKSH, marks, plan):
    batch, kv_heads, groups, length, head_dim = q_BKGTH.shape
    dtype, wide = q_BKGTH.dtype, jnp.promote_types(q_BKGTH.dtype, jnp.float32)
    marks = _whole_blocks_of_marks(marks, plan, batch, length, k_BKSH.shape[2])
    q_BKGTH = _whole_blocks(q_BKGTH, 3, plan.q_block)
    k_BKSH, v_BKSH = (_whole_blocks(x, 2, plan.k_block) for x in (k_BKSH, v_BKSH))
    seen = _seen_blocks(marks, plan, q_BKGTH.shape[3], k_BKSH.shape[2])
    first, stop = _ranges(seen)

    def query_block(i, carry):
        q_BKGUH = _block(q_BKGTH, i, plan.q_block, axis=3)

        def key_block(j, state):
            weighted, top, total = state
            k_BKWH, v_BKWH = (_block(x, j, plan.k_block, axis=2) for x in (k_BKSH, v_BKSH))
            scores = _scores(q_BKGUH, k_BKWH) * head_dim**-0.5
            visible = _visible(marks, plan, i, j)
            if visible is not None:
                scores = jnp.where(visible, scores, HIDDEN_SCORE)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
            p = jnp.exp(scores - new_top)
            shrink = jnp.exp(top - new_top)
            total = total * shrink + jnp.sum(p, axis=-1, keepdims=True)
            return weighted * shrink + _weighted_values(p, v_BKWH), new_top, total

        shape = (batch, kv_heads, groups, plan.q_block, 1)
        state = (
            jnp.zeros((*shape[:-1], head_dim), wide),
            jnp.full(shape, HIDDEN_SCORE, wide),
            jnp.zeros(shape, wide),
        )
        weighted, top, total = jax.lax.fori_loop(first[i], stop[i], key_block, state)
        # Where nothing was seen, the sums hold hidden scores only.
        has_seen = top > HIDDEN_SCORE / 2
        total = jnp.where(has_seen, total, 1)
        out_BKGUH = jnp.where(has_seen, weighted / total, 0).astype(dtype)
        lse_BKGU = jnp.where(has_seen, top + jnp.log(total), HIDDEN_SCORE)[..., 0]
        return tuple(
            _put_block(whole, part, i, plan.q_block, axis=3)
            for whole, part in zip(carry, (out_BKGUH, lse_BKGU), strict=True)
        )

    carry = (jnp.zeros_like(q_BKGTH), jnp.zeros(q_BKGTH.shape[:-1], wide))
    out, lse = jax.lax.fori_loop(0, first.size, query_block, carry)
    return out[:, :, :, :length], lse[..., :length]


def _backward(q_BKGTH, k_BKSH, v_BKSH, d_out_BKGTH, lse_BKGT, delta_BKGT, marks, plan):
    batch, length, num_keys = q_BKGTH.shape[0], q_BKGTH.shape[3], k_BKSH.shape[2]
    dtype, wide = k_BKSH.dtype, lse_BKGT.dtype
    marks = _whole_blocks_of_marks(marks, plan, batch, length, num_keys)
    of_queries = tuple(
        _whole_blocks(x, 3, plan.q_block) for x in (q_BKGTH, d_out_BKGTH, lse_BKGT, delta_BKGT)
    )
    k_BKSH, v_BKSH = (_whole_blocks(x, 2, plan.k_block) for x in (k_BKSH, v_BKSH))
    seen = _seen_blocks(marks, plan, of_queries[0].shape[3], k_BKSH.shape[2])
    first, stop = _ranges(seen.T)

    def key_block(j, carry):
        d_q, d_k, d_v = carry
        k_BKWH, v_BKWH = (_block(x, j, plan.k_block, axis=2) for x in (k_BKSH, v_BKSH))

        def query_block(i, state):
            d_q, d_k_block, d_v_block = state
            d_q_part, d_k_part, d_v_part = _block_gradients(
                [_block(x, i, plan.q_block, axis=3) for x in of_queries],
                k_BKWH,
                v_BKWH,
                _visible(marks, plan, i, j, keys_first=True),
            )
            d_q_part = d_q_part + _block(d_q, i, plan.q_block, axis=3)
            d_q = _put_block(d_q, d_q_part, i, plan.q_block, axis=3)
            return d_q, d_k_block + d_k_part, d_v_block + d_v_part

        zeros = jnp.zeros(k_BKWH.shape, wide)
        d_q, *of_block = jax.lax.fori_loop(first[j], stop[j], query_block, (d_q, zeros, zeros))
        d_k, d_v = (
            _put_block(whole, part.astype(dtype), j, plan.k_block, axis=2)
            for whole, part in zip((d_k, d_v), of_block, strict=True)
        )
        return d_q, d_k, d_v

    carry = (
        jnp.zeros(of_queries[0].shape, wide),
        jnp.zeros_like(k_BKSH),
        jnp.zeros_like(v_BKSH),
    )
    d_q, d_k, d_v = jax.lax.fori_loop(0, first.size, key_block, carry)
    return d_q[:, :, :, :length], d_k[:, :, :num_keys], d_v[:, :, :num_keys]


# One pair of blocks.


def _scores(q_BKGUH, k_BKWH):
    """Products of a block of queries with a block of keys: [B, K, G, U, W]."""
    wide = jnp.promote_types(q_BKGUH.dtype, jnp.float32)
    batch, kv_heads, groups, queries, head_dim = q_BKGUH.shape
    q_flat = q_BKGUH.reshape(batch, kv_heads, groups * queries, head_dim)
    scores = jnp.einsum("bkuh,bkwh->bkuw", q_flat, k_BKWH, preferred_element_type=wide)
    return scores.reshape(batch, kv_heads, groups, queries, -1)


def _weighted_values(p_BKGUW, v_BKWH):
    batch, kv_heads, groups, queries, keys = p_BKGUW.shape
    p_flat = p_BKGUW.reshape(batch, kv_heads, groups * queries, keys).astype(v_BKWH.dtype)
    out = jnp.einsum("bkuw,bkwh->bkuh", p_flat, v_BKWH, preferred_element_type=p_BKGUW.dtype)
    return out.reshape(batch, kv_heads, groups, queries, -1)


def _block_gradients(of_queries, k_BKWH, v_BKWH, visible_WU):
    """Gradients of one pair of blocks: d_q of these keys alone, d_k and d_v of these queries.

    Scores are formed with keys as rows, in which layout four of the five products need no
    transposed operand.
    """
    q_BKGUH, d_out_BKGUH, lse_BKGU, delta_BKGU = of_queries
    wide = lse_BKGU.dtype
    batch, kv_heads, groups, queries, head_dim = q_BKGUH.shape
    keys, scale = k_BKWH.shape[2], head_dim**-0.5
    q = q_BKGUH.reshape(batch, kv_heads, groups * queries, head_dim)
    d_out = d_out_BKGUH.reshape(q.shape)
    shape = (batch, kv_heads, keys, groups, queries)
    product = functools.partial(jnp.einsum, preferred_element_type=wide)
    log_p = product("bkwh,bkuh->bkwu", k_BKWH, q).reshape(shape) * scale - lse_BKGU[:, :, None]
    # Hidden before the exponential, so that both are one pass.
    p = jnp.exp(log_p if visible_WU is None else jnp.where(visible_WU, log_p, HIDDEN_SCORE))
    d_p = product("bkwh,bkuh->bkwu", v_BKWH, d_out).reshape(shape)
    d_scores = p * (d_p - delta_BKGU[:, :, None])
    p = p.reshape(batch, kv_heads, keys, -1).astype(q.dtype)
    d_scores = d_scores.reshape(p.shape).astype(q.dtype)
    d_v = product("bkwu,bkuh->bkwh", p, d_out)
    d_k = product("bkwu,bkuh->bkwh", d_scores, q) * scale
    d_q = product("bkwu,bkwh->bkuh", d_scores, k_BKWH) * scale
    return d_q.reshape(q_BKGUH.shape), d_k, d_v


def _visible(marks, plan, i, j, *, keys_first=False):
    """Which query of block i sees which key of block j; None if all see all.

    Returns:
      Bool [B or 1, 1, 1, U, W], or [B or 1, 1, W, 1, U] with keys first.
    """

    def pair(of_queries, of_keys, compare):
        if keys_first:
            return compare(of_queries[:, None, None, None, :], of_keys[:, None, :, None, None])
        return compare(of_queries[:, None, None, :, None], of_keys[:, None, None, None, :])

    def of_blocks(of_queries, of_keys):
        return (
            _block(of_queries, i, plan.q_block, axis=1),
            _block(of_keys, j, plan.k_block, axis=1),
        )

    visible = None
    if plan.causal:
        if plan.array_order:
            order = (
                (i * plan.q_block + jnp.arange(plan.q_block))[None],
                (j * plan.k_block + jnp.arange(plan.k_block))[None],
            )
        else:
            order = of_blocks(marks.q_positions_BT, marks.k_positions_BS)
        visible = pair(*order, jnp.greater_equal)
    if marks.q_segments_BT is not None:
        same = pair(*of_blocks(marks.q_segments_BT, marks.k_segments_BS), jnp.equal)
        visible = same if visible is None else visible & same
    return visible


# Cutting into blocks.


def _block(x, index, size, *, axis):
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=axis)


def _put_block(x, part, index, size, *, axis):
    return jax.lax.dynamic_update_slice_in_dim(x, part, index * size, axis=axis)


def _whole_blocks(x, axis, block, fill=0):
    """Fills up the last block."""
    padding = -x.shape[axis] % block
    widths = [(0, padding if dim == axis else 0) for dim in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=fill) if padding else x


def _whole_blocks_of_marks(marks, plan, batch, length, num_keys):
    """Fills up the marks such that no query sees a key that is not there."""
    q_segments, k_segments = marks.q_segments_BT, marks.k_segments_BS
    if q_segments is not None:
        q_segments, k_segments = (jnp.where(x == 0, _PADDING, x) for x in (q_segments, k_segments))
    elif num_keys % plan.k_block and not (plan.causal and plan.array_order):
        # Only here could a query see beyond the last key.
        q_segments = jnp.zeros((batch, length), jnp.int32)
        k_segments = jnp.zeros((batch, num_keys), jnp.int32)

    def whole(x, block, fill=0):
        return None if x is None else _whole_blocks(x, 1, block, fill)

    return _Marks(
        whole(marks.q_positions_BT, plan.q_block),
        whole(marks.k_positions_BS, plan.k_block),
        whole(q_segments, plan.q_block, _QUERY_FILL),
        whole(k_segments, plan.k_block, _KEY_FILL),
    )


def _seen_blocks(marks, plan, length, num_keys):
    """Whether any query of a block may see any key of another: bool [q blocks, k blocks].

    Judged by the least and greatest mark of each block, so a True may be a block with nothing to
    see, a False never has anything.
    """

    def extent(x_BT, block):
        blocks = x_BT.reshape(x_BT.shape[0], -1, block)
        return jnp.min(blocks, axis=-1), jnp.max(blocks, axis=-1)

    num_q_blocks, num_k_blocks = length // plan.q_block, num_keys // plan.k_block
    seen = jnp.ones((1, num_q_blocks, num_k_blocks), bool)
    if plan.causal and plan.array_order:
        seen = seen & (jnp.arange(num_q_blocks)[:, None] >= jnp.arange(num_k_blocks))
    elif plan.causal:
        _, last_query = extent(marks.q_positions_BT, plan.q_block)
        first_key, _ = extent(marks.k_positions_BS, plan.k_block)
        seen = seen & (last_query[:, :, None] >= first_key[:, None])
    if marks.q_segments_BT is not None:
        q_low, q_high = extent(marks.q_segments_BT, plan.q_block)
        k_low, k_high = extent(marks.k_segments_BS, plan.k_block)
        seen = seen & (q_low[:, :, None] <= k_high[:, None])
        seen = seen & (k_low[:, None] <= q_high[:, :, None])
    return jnp.any(seen, axis=0)


def _ranges(seen):
    """First and one past the last True of each row; an empty range where there is none."""
    first = jnp.argmax(seen, axis=1)
    stop = seen.shape[1] - jnp.argmax(seen[:, ::-1], axis=1)
    return first, jnp.where(jnp.any(seen, axis=1), stop, first)
