"""Experts by products with a mask of tokens, experts and places: the plain way, to compare with."""

import jax
import jax.numpy as jnp

from t5x_style.ops.experts import Experts, buffered_experts
from t5x_style.ops.routing import Routes


def one_hot_dispatch(
    x_PSD: jax.Array, routes: Routes, experts: Experts, *, capacity: int
) -> jax.Array:
    """Returns [P, S, D]: what experts make of tokens that are routed to one expert a bin.

    Args:
      x_PSD: tokens of each source rank.
      routes: where they go, of a router without local experts; every array with a leading P.
      experts: all of them.
      capacity: places of an expert for one source rank.
    """
    num_experts = experts.w1_EDF.shape[0]
    # A token without a place has the number `capacity`, of which there is no column.
    mask_PSREC = (
        jax.nn.one_hot(routes.bin_SR, num_experts)[..., None]
        * jax.nn.one_hot(routes.slot_SR, capacity)[..., None, :]
    )
    sent_EPCD = jnp.einsum("psrec,psd->epcd", mask_PSREC, x_PSD)
    made = buffered_experts(sent_EPCD.reshape(num_experts, -1, x_PSD.shape[-1]), experts)
    weighted_PSREC = mask_PSREC * routes.weight_SR[..., None, None]
    return jnp.einsum("psrec,epcd->psd", weighted_PSREC, made.reshape(sent_EPCD.shape))
