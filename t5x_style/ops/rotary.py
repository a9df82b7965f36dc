"""Rotary position embedding in the half-split (NeoX) pairing.

Legend: B batch, T length, N heads, H head dim, R = H / 2 frequencies.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class RotaryTables(NamedTuple):
    """Cosines and sines of the rotation angles of each position, fp32."""

    cos_BTR: jax.Array
    sin_BTR: jax.Array


def dynamic_ntk_base(
    base: float, head_dim: int, *, length: int, trained_length: int, factor: float
) -> float:
    """Returns the rotary base stretched for a text longer than the trained window.

    `base * (factor * length / trained_length - (factor - 1)) ** (head_dim / (head_dim - 2))` where
    length exceeds trained_length, `base` otherwise. Compute it once from the full length of a
    text: with a base that grows while decoding, cached keys keep older rotations.

    Args:
      base: the trained base.
      head_dim: H.
      length: tokens that the base is chosen for; generation gives the prompt's.
      trained_length: tokens of the trained window.
      factor: the `rope_scaling` factor of the published configurations.
    """
    if length <= trained_length:
        return base
    stretch = factor * length / trained_length - (factor - 1)
    return base * stretch ** (head_dim / (head_dim - 2))


def rotary_tables(positions_BT: jax.Array, *, head_dim: int, base: float) -> RotaryTables:
    """Returns cos and sin of `position * base ** (-2 i / head_dim)`, i < head_dim / 2, in fp32.

    Args:
      positions_BT: int32 [B, T].
      head_dim: H, even.
      base: base of the frequencies.
    """
    exponents_R = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    inverse_frequencies_R = jnp.float32(base) ** -exponents_R
    angles_BTR = positions_BT.astype(jnp.float32)[..., None] * inverse_frequencies_R
    return RotaryTables(jnp.cos(angles_BTR), jnp.sin(angles_BTR))


def apply_rotary(x_BTNH: jax.Array, tables: RotaryTables) -> jax.Array:
    """Rotates each pair (x[i], x[i + H/2]) by the angle of its position and frequency.

    Args:
      x_BTNH: queries or keys [B, T, N, H]; leading head dimensions may be more than one.
      tables: of the same B (or 1) and T.

    Returns:
      Array of the shape and dtype of x_BTNH; the rotation itself is done in fp32.
    """
    extra_dims = tuple(range(2, x_BTNH.ndim - 1))
    cos = jnp.expand_dims(tables.cos_BTR, extra_dims)
    sin = jnp.expand_dims(tables.sin_BTR, extra_dims)
    first, second = jnp.split(x_BTNH.astype(jnp.promote_types(x_BTNH.dtype, cos.dtype)), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)
