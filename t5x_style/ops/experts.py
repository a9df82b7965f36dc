"""SwiGLU experts over tokens that have been sorted by expert, or laid out in buffers of one size.

Sorted rows are multiplied by `ragged_dot`, and sorting and undoing it are gathers in both
directions of differentiation, never scatters of rows. On CPUs, whose `ragged_dot` computes every
row with every expert, there is a loop over blocks of one expert each, as many as there are rows to
serve: it takes each block's rows from where they are and puts the results where they belong.

Legend: E experts, D model, F feed-forward, X rows of a buffer, A rows, R copies of each, N = A R,
M sorted rows with each expert's filled up to whole blocks, U rows of a block.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5x_style.ops.rows import take_rows, taken
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


def chosen_experts(
    x_AD: jax.Array,
    expert_AR: jax.Array,
    experts: Experts,
    *,
    max_served: int | None = None,
) -> tuple[jax.Array, Experts]:
    """Returns what the chosen experts make of each row, with no limit to how many choose one.

    Returns the weights too, for what else they are to be used for: that part of their gradient is
    then gone on from, where two gradients would have to be added up, however few rows there are.

    Args:
      x_AD: rows.
      expert_AR: int32 experts of each row; E, or more, for none.
      experts: their weights.
      max_served: entries of expert_AR that name an expert at most; None for all. Less is less
        memory, and less work where sorted rows are multiplied whether they are there or not.

    Returns:
      [A, R, D], dtype of x, zeros where there is no expert; and the weights.
    """
    num_rows, copies = expert_AR.shape
    num_experts = experts.w1_EDF.shape[0]
    expert_N = jnp.minimum(expert_AR.reshape(-1), num_experts)
    place_N, source_M, blocks_E = _sorted_places(expert_N, num_experts, max_served)
    if platform() == "cpu":
        both: Any = _looped(x_AD, experts, source_M, blocks_E, copies)
        y_ND, experts = both
    else:
        x_MD = take_rows(x_AD, source_M // copies, place_N.reshape(num_rows, copies))
        y_MD = _ragged(x_MD, experts, blocks_E * BLOCK_ROWS)
        y_ND = take_rows(y_MD, place_N, source_M[:, None])
    return y_ND.reshape(num_rows, copies, -1), experts


def _sorted_places(
    expert_N: jax.Array, num_experts: int, max_served: int | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns where each row goes when sorted by expert, and back, and the blocks of each expert.

    Returns:
      int32 [N], places from 0 to M - 1, M for a row without an expert; int32 [M], the row at each
      place, N where there is none; int32 [E].
    """
    num_rows = expert_N.shape[0]
    most = num_rows if max_served is None else min(max_served, num_rows)
    # So many even if every expert's last block holds one row.
    num_blocks = min(most, most // BLOCK_ROWS + num_experts)
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


def _ragged(x_MD: jax.Array, experts: Experts, sizes_E: jax.Array) -> jax.Array:
    gate = jax.lax.ragged_dot(x_MD, experts.w1_EDF, sizes_E)
    up = jax.lax.ragged_dot(x_MD, experts.w3_EDF, sizes_E)
    return jax.lax.ragged_dot(_gated(gate, up), experts.w2_EFD, sizes_E)


def _gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    wide = jnp.promote_types(gate.dtype, jnp.float32)
    return (jax.nn.silu(gate.astype(wide)) * up.astype(wide)).astype(gate.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _looped(
    x_AD: jax.Array,
    experts: Experts,
    source_M: jax.Array,
    blocks_E: jax.Array,
    copies: int,
) -> tuple[jax.Array, Experts]:
    """Returns [N, D], N = A * copies, by a loop over the blocks that there are, and the weights."""
    source_of, expert_of = _blocks(source_M, blocks_E)

    def block(i, y_ND):
        rows_U = source_of(i)
        of_expert = Experts(*(w[expert_of[i]] for w in experts))
        y_UD = _one_expert(taken(x_AD, rows_U // copies), of_expert)
        return y_ND.at[rows_U].set(y_UD, mode="drop")

    y_ND = jnp.zeros((x_AD.shape[0] * copies, x_AD.shape[1]), x_AD.dtype)
    return jax.lax.fori_loop(0, jnp.sum(blocks_E), block, y_ND), experts


def _forward(x_AD, experts, source_M, blocks_E, copies):
    results = _looped(x_AD, experts, source_M, blocks_E, copies)
    return results, (x_AD, experts, source_M, blocks_E)


def _backward(copies, residuals, cotangents):
    x_AD, experts, source_M, blocks_E = residuals
    d_y_ND, d_experts = cotangents
    source_of, expert_of = _blocks(source_M, blocks_E)

    def block(i, sums):
        d_x_AD, d_experts = sums
        rows_U, e = source_of(i), expert_of[i]
        x_UD = taken(x_AD, rows_U // copies)
        _, pull = jax.vjp(_one_expert, x_UD, Experts(*(w[e] for w in experts)))
        d_x_UD, d_one = pull(taken(d_y_ND, rows_U))
        d_experts = Experts(*(w.at[e].add(d) for w, d in zip(d_experts, d_one, strict=True)))
        return d_x_AD.at[rows_U // copies].add(d_x_UD, mode="drop"), d_experts

    sums = (jnp.zeros_like(x_AD), Experts(*d_experts))
    d_x_AD, d_experts = jax.lax.fori_loop(0, jnp.sum(blocks_E), block, sums)
    return d_x_AD, d_experts, None, None


_looped.defvjp(_forward, _backward)


def _one_expert(x_UD: jax.Array, weights: Experts) -> jax.Array:
    w1_DF, w3_DF, w2_FD = weights
    return _gated(x_UD @ w1_DF, x_UD @ w3_DF) @ w2_FD


def _blocks(
    source_M: jax.Array, blocks_E: jax.Array
) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
    """Returns a function from a block's number to its rows, and the expert of each block."""
    numbers = jnp.arange(source_M.shape[0] // BLOCK_ROWS)
    expert_of = jnp.searchsorted(jnp.cumsum(blocks_E), numbers, side="right").astype(jnp.int32)

    def source_of(i):
        return jax.lax.dynamic_slice_in_dim(source_M, i * BLOCK_ROWS, BLOCK_ROWS)

    return source_of, expert_of
