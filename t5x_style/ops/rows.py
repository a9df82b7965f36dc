"""Taking rows of an array by number, with gradients that take rows too.

The gradient of taking rows, left to itself, adds each row to where it came from, which is slow on
every platform. Here it is told where each row went, and takes it from there.
"""

import functools

import jax
import jax.numpy as jnp


@jax.custom_vjp
def take_rows(x_AD: jax.Array, index_B: jax.Array, inverse_AR: jax.Array) -> jax.Array:
    """Returns `taken(x, index)`.

    Args:
      x_AD: [A, D].
      index_B: int32 [B] from 0 to A.
      inverse_AR: int32 [A, R], the places in the result that each row went to; B for none. All of
        them, each once.

    Returns:
      [B, D].
    """
    return taken(x_AD, index_B)


def taken(x: jax.Array, index: jax.Array) -> jax.Array:
    """Returns `x[index]`; zeros where the index is beyond the last row."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _take_forward(x_AD, index_B, inverse_AR):
    return taken(x_AD, index_B), inverse_AR


def _take_backward(inverse_AR, d_y_BD):
    if inverse_AR.shape[1] == 1:
        return taken(d_y_BD, inverse_AR[:, 0]), None, None
    wide = _wide(d_y_BD)
    d_x_AD = functools.reduce(
        jnp.add, (taken(d_y_BD, index_A).astype(wide) for index_A in inverse_AR.T)
    )
    return d_x_AD.astype(d_y_BD.dtype), None, None


take_rows.defvjp(_take_forward, _take_backward)


@jax.custom_vjp
def combine_rows(
    x_AD: jax.Array, weight_BR: jax.Array, index_BR: jax.Array, inverse_A: jax.Array
) -> jax.Array:
    """Returns `sum_r weight[:, r] * taken(x, index[:, r])`.

    Args:
      x_AD: [A, D].
      weight_BR: [B, R].
      index_BR: int32 [B, R] from 0 to A; no row is taken twice.
      inverse_A: int32 [A], the number in `index_BR.ravel()` that takes each row; B * R for none.

    Returns:
      [B, D] in fp32 at least.
    """
    wide = _wide(x_AD)
    # Term by term: as one gather and sum, XLA for CPUs takes a hundred times as long.
    terms = (
        taken(x_AD, index_B).astype(wide) * weight_B[:, None].astype(wide)
        for index_B, weight_B in zip(index_BR.T, weight_BR.T, strict=True)
    )
    return functools.reduce(jnp.add, terms)


def _combine_forward(x_AD, weight_BR, index_BR, inverse_A):
    residuals = (x_AD, weight_BR, index_BR, inverse_A)
    return combine_rows(*residuals), residuals


def _combine_backward(residuals, d_y_BD):
    x_AD, weight_BR, index_BR, inverse_A = residuals
    d_taken_AD = taken(d_y_BD, inverse_A // weight_BR.shape[1])
    weight_A = taken(weight_BR.ravel(), inverse_A).astype(d_y_BD.dtype)
    d_x_AD = (weight_A[:, None] * d_taken_AD).astype(x_AD.dtype)
    d_weight_A = jnp.einsum("ad,ad->a", d_taken_AD, x_AD.astype(d_y_BD.dtype))
    return d_x_AD, taken(d_weight_A, index_BR).astype(weight_BR.dtype), None, None


combine_rows.defvjp(_combine_forward, _combine_backward)


def _wide(x: jax.Array):
    return jnp.promote_types(x.dtype, jnp.float32)
