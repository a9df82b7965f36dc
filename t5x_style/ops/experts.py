"""SwiGLU experts over tokens that have been sorted by expert, or laid out in buffers of one size.

Sorting and undoing it are gathers in both directions of differentiation, never scatters of rows.
On CPUs, whose `ragged_dot` computes every row with every expert, sorted rows go through a loop over
blocks of one expert each, as many as there are rows to serve.

Legend: E experts, D model, F feed-forward, X rows of a buffer, N rows, M sorted rows with each
expert's filled up to whole blocks, U rows of a block, A and B rows of any kind, R copies of a row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_style.ops.rows import take_rows
from t5x_style.parallel.mesh import platform

BLOCK_ROWS = 64


class Experts(NamedTuple):
    """Weights of E feed-forward layers: `(silu(x w1) * (x w3)) w2`."""

    w1_EDF: jax.Array
    w3_EDF: jax.Array
    w2_EFD: jax.Array

    def astype(self, dtype: Any) -> "Experts":
        """Returns them in another dtype."""
        return Experts(*(w.astype(dtype) for w in self))


def buffered_experts(x_EXD: jax.Array, experts: Experts) -> jax.Array:
    """Returns what each expert makes of its own buffer of rows, [E, X, D]."""
    gate = jnp.einsum("exd,edf->exf", x_EXD, experts.w1_EDF)
    up = jnp.einsum("exd,edf->exf", x_EXD, experts.w3_EDF)
    return jnp.einsum("exf,efd->exd", _gated(gate, up), experts.w2_EFD)


def chosen_experts(x_AD: jax.Array, expert_AR: jax.Array, experts: Experts) -> jax.Array:
    """Returns what the chosen experts make of each row, with no limit to how many choose one.

    Args:
      x_AD: rows.
      expert_AR: int32 experts of each row; E, or more, for none.
      experts: their weights.

    Returns:
      [A, R, D], dtype of x; zeros where there is no expert.
    """
    num_rows, copies = expert_AR.shape
    num_experts = experts.w1_EDF.shape[0]
    expert_N = jnp.minimum(expert_AR.reshape(-1), num_experts)
    place_N, source_M, blocks_E = _sorted_places(expert_N, num_experts)
    x_MD = take_rows(x_AD, source_M // copies, place_N.reshape(num_rows, copies))
    y_MD = _sorted_swiglu(x_MD, experts, blocks_E)
    y_ND = take_rows(y_MD, place_N, source_M[:, None])
    return y_ND.reshape(num_rows, copies, -1)


def _sorted_places(expert_N: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns where each row goes when sorted by expert, and back, and the blocks of each expert.

    Returns:
      int32 [N], places from 0 to M - 1, M for a row without an expert; int32 [M], the row at each
      place, N where there is none; int32 [E].
    """
    num_rows = expert_N.shape[0]
    # So many even if every expert's last block holds one row.
    num_blocks = min(num_rows, -(-num_rows // BLOCK_ROWS) + num_experts)
    num_places = num_blocks * BLOCK_ROWS
    order_N = jnp.argsort(expert_N, stable=True)
    sorted_N = expert_N[order_N]
    first_E = jnp.searchsorted(sorted_N, jnp.arange(num_experts + 1)).astype(jnp.int32)
    blocks_E = -(-jnp.diff(first_E) // BLOCK_ROWS)
    start_E = (jnp.cumsum(blocks_E) - blocks_E) * BLOCK_ROWS
    shift = jnp.append(start_E - first_E[:-1], 0)[sorted_N]
    places = jnp.where(sorted_N < num_experts, jnp.arange(num_rows) + shift, num_places)
    place_N = jnp.zeros(num_rows, jnp.int32).at[order_N].set(places.astype(jnp.int32))
    source_M = jnp.full(num_places, num_rows, jnp.int32)
    source_M = source_M.at[place_N].set(jnp.arange(num_rows, dtype=jnp.int32), mode="drop")
    return place_N, source_M, blocks_E


def _sorted_swiglu(x_MD: jax.Array, experts: Experts, blocks_E: jax.Array) -> jax.Array:
    if platform() == "cpu":
        return _blockwise_swiglu(x_MD, experts, blocks_E)
    sizes_E = blocks_E * BLOCK_ROWS
    gate = jax.lax.ragged_dot(x_MD, experts.w1_EDF, sizes_E)
    up = jax.lax.ragged_dot(x_MD, experts.w3_EDF, sizes_E)
    return jax.lax.ragged_dot(_gated(gate, up), experts.w2_EFD, sizes_E)


def _gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    wide = jnp.promote_types(gate.dtype, jnp.float32)
    return (jax.nn.silu(gate.astype(wide)) * up.astype(wide)).astype(gate.dtype)


@jax.custom_vjp
def _blockwise_swiglu(x_MD: jax.Array, experts: Experts, blocks_E: jax.Array) -> jax.Array:
    """The same for rows in whole blocks, by a loop over the blocks that there are."""
    expert_of = _expert_of_block(x_MD, blocks_E)

    def block(i, y_MD):
        of_block = _one_expert(_block(x_MD, i), Experts(*(w[expert_of[i]] for w in experts)))
        return jax.lax.dynamic_update_slice_in_dim(y_MD, of_block, i * BLOCK_ROWS, axis=0)

    return jax.lax.fori_loop(0, jnp.sum(blocks_E), block, jnp.zeros_like(x_MD))


def _forward(x_MD, experts, blocks_E):
    return _blockwise_swiglu(x_MD, experts, blocks_E), (x_MD, experts, blocks_E)


def _backward(residuals, d_y_MD):
    x_MD, experts, blocks_E = residuals
    expert_of = _expert_of_block(x_MD, blocks_E)

    def block(i, sums):
        d_x_MD, d_experts = sums
        e = expert_of[i]
        _, pull = jax.vjp(_one_expert, _block(x_MD, i), Experts(*(w[e] for w in experts)))
        d_x_UD, d_one = pull(_block(d_y_MD, i))
        d_x_MD = jax.lax.dynamic_update_slice_in_dim(d_x_MD, d_x_UD, i * BLOCK_ROWS, axis=0)
        return d_x_MD, Experts(*(w.at[e].add(d) for w, d in zip(d_experts, d_one, strict=True)))

    zeros = (jnp.zeros_like(x_MD), jax.tree.map(jnp.zeros_like, experts))
    d_x_MD, d_experts = jax.lax.fori_loop(0, jnp.sum(blocks_E), block, zeros)
    return d_x_MD, d_experts, None


_blockwise_swiglu.defvjp(_forward, _backward)


def _one_expert(x_UD: jax.Array, weights: Experts) -> jax.Array:
    w1_DF, w3_DF, w2_FD = weights
    return _gated(x_UD @ w1_DF, x_UD @ w3_DF) @ w2_FD


def _block(x: jax.Array, i: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, i * BLOCK_ROWS, BLOCK_ROWS, axis=0)


def _expert_of_block(x_MD: jax.Array, blocks_E: jax.Array) -> jax.Array:
    blocks = jnp.arange(x_MD.shape[0] // BLOCK_ROWS)
    return jnp.searchsorted(jnp.cumsum(blocks_E), blocks, side="right").astype(jnp.int32)
