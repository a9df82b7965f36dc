"""Attention a block of queries and keys at a time, and its gradient: loops in plain JAX.

Memory grows with the length, not its square. Loops run over blocks of queries and keys, with trip
counts that follow the causal triangle and the segments of packed rows: blocks that no query can see
are not computed. Partial results over some of the keys can be merged by their log-sum-exp
(arXiv 2205.14135, section 3.1), for which `parallel.ring_attention` calls this code: it has the
rule of differentiation too.

Legend: B batch, T queries, S keys, K key and value heads, G query heads of each, H head dim, U
and W lengths of one block of queries and of keys.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from t5x_style.parallel.ring_attention import HIDDEN_SCORE, Marks

# Scores of one pair of blocks, over all rows and heads. On CPUs about so many stay in the cache and
# still keep every core busy.
_BLOCK_SCORES = 400_000
_BLOCK_TOKENS = (64, 128, 256, 512)

# Segments that no token has: of the queries and keys that fill up the last block. They are the
# largest, as padding comes last, so that a block with some of it still sees few others.
_QUERY_FILL, _KEY_FILL, _PADDING = (jnp.iinfo(jnp.int32).max - i for i in range(3))
# Their places in the order: such queries see nothing, such keys are not seen.
_FIRST, _LAST = jnp.iinfo(jnp.int32).min, jnp.iinfo(jnp.int32).max


def default_block_tokens(num_rows_and_heads: int) -> int:
    """Returns the block length for so many query heads of all rows together."""
    block = math.sqrt(_BLOCK_SCORES / num_rows_and_heads)
    return min(_BLOCK_TOKENS, key=lambda tokens: abs(math.log(tokens / block)))


def _even_block(length: int, block: int) -> int:
    """The least block length that needs no more blocks, so that little padding is computed."""
    return math.ceil(length / math.ceil(length / block))


@dataclasses.dataclass(frozen=True)
class Blockwise:
    """How the work is cut; a kernel of `parallel.ring_attention`.

    Attributes:
      causal: whether keys after the query are hidden.
      q_block: U.
      k_block: W.
    """

    causal: bool
    q_block: int
    k_block: int

    @classmethod
    def of(
        cls,
        q_BKGTH: jax.Array,
        num_keys: int,
        *,
        causal: bool,
        block_tokens: int | None = None,
        num_runs: int = 1,
    ) -> "Blockwise":
        """Returns how to cut attention to so many keys.

        Args:
          q_BKGTH: the queries.
          num_keys: the keys.
          causal: whether keys after the query are hidden.
          block_tokens: about the length of a block; None chooses by size.
          num_runs: equal parts within which the order has no gap; no block is to span two.
        """
        batch, kv_heads, groups, length, _ = q_BKGTH.shape
        block = block_tokens or default_block_tokens(batch * kv_heads * groups)
        lengths = (math.ceil(length / num_runs), math.ceil(num_keys / num_runs))
        return cls(causal, *(_even_block(length, block) for length in lengths))

    @jax.named_scope("blockwise")
    def forward(
        self,
        q_BKGTH: jax.Array,
        k_BKSH: jax.Array,
        v_BKSH: jax.Array,
        q_marks: Marks,
        k_marks: Marks,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns attention to these keys and its log-sum-exp; see `parallel.ring_attention`."""
        batch, kv_heads, groups, length, head_dim = q_BKGTH.shape
        wide = jnp.promote_types(q_BKGTH.dtype, jnp.float32)
        pairs = _Pairs.of(self, q_marks, k_marks, (batch, length, k_BKSH.shape[2]))
        q_BKGTH = _whole_blocks(q_BKGTH, 3, self.q_block)
        k_BKSH, v_BKSH = (_whole_blocks(x, 2, self.k_block) for x in (k_BKSH, v_BKSH))
        first, stop = _ranges(pairs.seen())

        def query_block(i, carry):
            q_BKGUH = _block(q_BKGTH, i, self.q_block, axis=3)

            def key_block(j, state):
                weighted, top, total = state
                k_BKWH, v_BKWH = (_block(x, j, self.k_block, axis=2) for x in (k_BKSH, v_BKSH))
                scores = _scores(q_BKGUH, k_BKWH) * head_dim**-0.5
                visible = pairs.visible(i, j)
                if visible is not None:
                    scores = jnp.where(visible, scores, HIDDEN_SCORE)
                new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
                p = jnp.exp(scores - new_top)
                shrink = jnp.exp(top - new_top)
                total = total * shrink + jnp.sum(p, axis=-1, keepdims=True)
                return weighted * shrink + _weighted_values(p, v_BKWH), new_top, total

            shape = (batch, kv_heads, groups, self.q_block, 1)
            state = (
                jnp.zeros((*shape[:-1], head_dim), wide),
                jnp.full(shape, HIDDEN_SCORE, wide),
                jnp.zeros(shape, wide),
            )
            weighted, top, total = jax.lax.fori_loop(first[i], stop[i], key_block, state)
            # Where nothing was seen, the sums hold hidden scores only.
            has_seen = top > HIDDEN_SCORE / 2
            total = jnp.where(has_seen, total, 1)
            out_BKGUH = jnp.where(has_seen, weighted / total, 0)
            lse_BKGU = jnp.where(has_seen, top + jnp.log(total), HIDDEN_SCORE)[..., 0]
            return tuple(
                _put_block(whole, part, i, self.q_block, axis=3)
                for whole, part in zip(carry, (out_BKGUH, lse_BKGU), strict=True)
            )

        carry = (jnp.zeros(q_BKGTH.shape, wide), jnp.zeros(q_BKGTH.shape[:-1], wide))
        out, lse = jax.lax.fori_loop(0, first.size, query_block, carry)
        return out[:, :, :, :length], lse[..., :length]

    @jax.named_scope("blockwise")
    def backward(
        self,
        q_BKGTH: jax.Array,
        k_BKSH: jax.Array,
        v_BKSH: jax.Array,
        q_marks: Marks,
        k_marks: Marks,
        d_out_BKGTH: jax.Array,
        lse_BKGT: jax.Array,
        delta_BKGT: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns what these keys add to the gradients; see `parallel.ring_attention`."""
        batch, length, num_keys = q_BKGTH.shape[0], q_BKGTH.shape[3], k_BKSH.shape[2]
        wide = lse_BKGT.dtype
        pairs = _Pairs.of(self, q_marks, k_marks, (batch, length, num_keys))
        of_queries = tuple(
            _whole_blocks(x, 3, self.q_block) for x in (q_BKGTH, d_out_BKGTH, lse_BKGT, delta_BKGT)
        )
        k_BKSH, v_BKSH = (_whole_blocks(x, 2, self.k_block) for x in (k_BKSH, v_BKSH))
        first, stop = _ranges(pairs.seen().T)

        def key_block(j, carry):
            d_q, d_k, d_v = carry
            k_BKWH, v_BKWH = (_block(x, j, self.k_block, axis=2) for x in (k_BKSH, v_BKSH))

            def query_block(i, state):
                d_q, d_k_block, d_v_block = state
                d_q_part, d_k_part, d_v_part = _block_gradients(
                    [_block(x, i, self.q_block, axis=3) for x in of_queries],
                    k_BKWH,
                    v_BKWH,
                    pairs.visible(i, j, keys_first=True),
                )
                d_q_part = d_q_part + _block(d_q, i, self.q_block, axis=3)
                d_q = _put_block(d_q, d_q_part, i, self.q_block, axis=3)
                return d_q, d_k_block + d_k_part, d_v_block + d_v_part

            zeros = jnp.zeros(k_BKWH.shape, wide)
            d_q, *of_block = jax.lax.fori_loop(first[j], stop[j], query_block, (d_q, zeros, zeros))
            d_k, d_v = (
                _put_block(whole, part, j, self.k_block, axis=2)
                for whole, part in zip((d_k, d_v), of_block, strict=True)
            )
            return d_q, d_k, d_v

        carry = tuple(jnp.zeros(x.shape, wide) for x in (of_queries[0], k_BKSH, v_BKSH))
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


# Which pairs.


def num_pairs(
    cut: Blockwise, q_marks: Marks, k_marks: Marks, num_queries: int, num_keys: int
) -> jax.Array:
    """Returns how many pairs of blocks one row's attention to some keys computes: int32 scalar."""
    seen = _Pairs.of(cut, q_marks, k_marks, (1, num_queries, num_keys)).seen()
    first, stop = _ranges(seen)
    return jnp.sum(stop - first)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Which query sees which key, a pair of blocks at a time.

    Attributes:
      cut: lengths of the blocks.
      q: marks of the queries, in whole blocks; `order_BT` None for the order in the array.
      k: those of the keys.
      num_blocks: of queries and of keys.
    """

    cut: Blockwise
    q: Marks
    k: Marks
    num_blocks: tuple[int, int]

    @classmethod
    def of(cls, cut: Blockwise, q: Marks, k: Marks, sizes: tuple[int, int, int]) -> "_Pairs":
        """Fills up the marks such that no query sees a key that is not there."""
        batch, length, num_keys = sizes
        q_segments, k_segments = q.segments_BT, k.segments_BT
        if q_segments is not None and k_segments is not None:
            q_segments, k_segments = (
                jnp.where(x == 0, _PADDING, x) for x in (q_segments, k_segments)
            )
        elif num_keys % cut.k_block and not (
            cut.causal and (q.order_BT is not None or length <= num_keys)
        ):
            # Only here could a query see beyond the last key.
            q_segments = jnp.zeros((batch, length), jnp.int32)
            k_segments = jnp.zeros((batch, num_keys), jnp.int32)
        of_queries = Marks(
            _whole_marks(q.order_BT, cut.q_block, _FIRST),
            _whole_marks(q_segments, cut.q_block, _QUERY_FILL),
        )
        of_keys = Marks(
            _whole_marks(k.order_BT, cut.k_block, _LAST),
            _whole_marks(k_segments, cut.k_block, _KEY_FILL),
        )
        num_blocks = (math.ceil(length / cut.q_block), math.ceil(num_keys / cut.k_block))
        return cls(cut, of_queries, of_keys, num_blocks)

    def visible(self, i, j, *, keys_first: bool = False) -> jax.Array | None:
        """Returns which query of block i sees which key of block j; None if all see all.

        Returns:
          Bool [B or 1, 1, 1, U, W], or [B or 1, 1, W, 1, U] with keys first.
        """

        def compared(of_queries, of_keys, compare):
            if keys_first:
                return compare(of_queries[:, None, None, None, :], of_keys[:, None, :, None, None])
            return compare(of_queries[:, None, None, :, None], of_keys[:, None, None, None, :])

        def of_blocks(of_queries, of_keys):
            return (
                _block(of_queries, i, self.cut.q_block, axis=1),
                _block(of_keys, j, self.cut.k_block, axis=1),
            )

        visible = None
        if self.cut.causal:
            if self.q.order_BT is None:
                order = (
                    (i * self.cut.q_block + jnp.arange(self.cut.q_block))[None],
                    (j * self.cut.k_block + jnp.arange(self.cut.k_block))[None],
                )
            else:
                order = of_blocks(self.q.order_BT, self.k.order_BT)
            visible = compared(*order, jnp.greater_equal)
        if self.q.segments_BT is not None:
            same = compared(*of_blocks(self.q.segments_BT, self.k.segments_BT), jnp.equal)
            visible = same if visible is None else visible & same
        return visible

    def seen(self) -> jax.Array:
        """Returns whether any query of a block may see any key of another: bool [blocks, blocks].

        Judged by the least and greatest mark of each block, so a True may be a block with nothing
        to see, a False never has anything.
        """

        def extent(x_BT, block):
            blocks = x_BT.reshape(x_BT.shape[0], -1, block)
            return jnp.min(blocks, axis=-1), jnp.max(blocks, axis=-1)

        q_block, k_block = self.cut.q_block, self.cut.k_block
        seen = jnp.ones((1, *self.num_blocks), bool)
        if self.cut.causal and self.q.order_BT is None:
            last_query = (jnp.arange(self.num_blocks[0]) + 1) * q_block - 1
            first_key = jnp.arange(self.num_blocks[1]) * k_block
            seen = seen & (last_query[:, None] >= first_key)
        elif self.cut.causal:
            _, last_query = extent(self.q.order_BT, q_block)
            first_key, _ = extent(self.k.order_BT, k_block)
            seen = seen & (last_query[:, :, None] >= first_key[:, None])
        if self.q.segments_BT is not None:
            q_low, q_high = extent(self.q.segments_BT, q_block)
            k_low, k_high = extent(self.k.segments_BT, k_block)
            seen = seen & (q_low[:, :, None] <= k_high[:, None])
            seen = seen & (k_low[:, None] <= q_high[:, :, None])
        return jnp.any(seen, axis=0)


def _whole_marks(x_BT, block, fill):
    return None if x_BT is None else _whole_blocks(x_BT, 1, block, fill)


def _ranges(seen):
    """First and one past the last True of each row; an empty range where there is none."""
    first = jnp.argmax(seen, axis=1)
    stop = seen.shape[1] - jnp.argmax(seen[:, ::-1], axis=1)
    return first, jnp.where(jnp.any(seen, axis=1), stop, first)


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
