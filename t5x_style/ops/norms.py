"""Normalisation over the last dimension."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Divides by the root mean square and multiplies by a learned scale.

    `x * rsqrt(mean(x^2) + eps)` in fp32, cast back to the dtype of x, then times the scale: the
    order of the published weights (arXiv 2403.17297, section 2.2; arXiv 1910.07467). Only x itself
    is kept for the gradient.

    Args:
      x: [..., D], any float dtype.
      scale: [D].
      eps: added to the mean square.

    Returns:
      [..., D], dtype of x.
    """
    return _forward(x, scale, eps)[0]


def _forward(x, scale, eps):
    wide, inverse_rms = _statistics(x, eps)
    normed = (wide * inverse_rms).astype(x.dtype)
    return normed * scale.astype(x.dtype), (x, scale)


def _backward(eps, residuals, d_out):
    x, scale = residuals
    wide, inverse_rms = _statistics(x, eps)
    normed = wide * inverse_rms
    d_out = d_out.astype(wide.dtype)
    d_normed = d_out * scale.astype(wide.dtype)
    along = jnp.mean(d_normed * normed, axis=-1, keepdims=True)
    d_x = (d_normed - normed * along) * inverse_rms
    d_scale = jnp.sum(d_out * normed, axis=tuple(range(x.ndim - 1)))
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype)


rms_norm.defvjp(_forward, _backward)


def _statistics(x, eps):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return wide, jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
