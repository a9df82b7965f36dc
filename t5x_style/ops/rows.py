"""Taking rows of an array by number, with a gradient that takes rows too."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def take_rows(x_AD: jax.Array, index_B: jax.Array, inverse_AR: jax.Array) -> jax.Array:
    """Returns `x[index]`; rows of zeros where the index is A.

    The gradient by itself would add rows to where they came from, which is slow on every platform;
    given where each row went, it is a gather and a sum over the R places.

    Args:
      x_AD: [A, D].
      index_B: int32 [B] from 0 to A.
      inverse_AR: int32 [A, R], the places in the result that each row went to; B for none. All of
        them, each once.

    Returns:
      [B, D].
    """
    return _taken(x_AD, index_B)


def _taken(x, index):
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _forward(x_AD, index_B, inverse_AR):
    return _taken(x_AD, index_B), inverse_AR


def _backward(inverse_AR, d_y_BD):
    if inverse_AR.shape[1] == 1:
        return _taken(d_y_BD, inverse_AR[:, 0]), None, None
    wide = jnp.promote_types(d_y_BD.dtype, jnp.float32)
    d_x_AD = jnp.sum(_taken(d_y_BD, inverse_AR), axis=1, dtype=wide)
    return d_x_AD.astype(d_y_BD.dtype), None, None


take_rows.defvjp(_forward, _backward)
