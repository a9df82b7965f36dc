"""How tokens travel to the experts that a router has named, and back.

A router says for each token the bin (an expert, or a group of them) and the place in the bin's
buffer; buffers are of one size for every source rank, so what is sent has a static shape. Three
ways: `Between` sends by an explicit all-to-all among the devices of a mesh axis, inside an island,
and `Ragged` of the same buffers only what is filled, where the platform can; `Everywhere` holds the
tokens of all ranks and leaves the sending to the compiler, or plays several ranks on one device
(arXiv 2402.12399 is about what each rank does with its own tokens). Which router spoke is not known
here.

Legend: P source ranks held here, S tokens of one, R routes of a token, B bins, b those held here, C
places of one source rank in a bin, X places in a bin, K experts of a route within its bin, D model,
E experts held here.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from t5x_style.ops.experts import Experts, buffered_experts, chosen_experts
from t5x_style.ops.routing import Inner, Local, Routes
from t5x_style.ops.rows import combine_rows, take_rows
from t5x_style.parallel.rules import constrain

# Buffers by source rank (replicas, ranks, pieces, bins, ...), and by bin (bins, pieces, replicas,
# ranks, ...): what is cut stands first, so that it can be merged with what is whole.
_BY_RANK = ("act_replicas", "act_experts", "act_length")
_BY_BIN = ("act_experts", "act_length", "act_replicas")


class Exchange(Protocol):
    """Brings buffers from the ranks of their tokens to the ranks of their bins, and back."""

    num_ranks: int

    def rank(self) -> jax.Array:
        """Returns int32 [P], the rank among its peers of each source rank held here."""
        ...

    def to_bins(self, x_PBC: jax.Array, filled_PB: jax.Array) -> jax.Array:
        """[P, B, C, ...] to [b, X, ...].

        Args:
          x_PBC: buffers, zeros where they are not filled.
          filled_PB: int32, so many first places of each are.
        """
        ...

    def to_ranks(self, x_bX: jax.Array, filled_PB: jax.Array) -> jax.Array:
        """[b, X, ...] to [P, B, C, ...]; anything where they are not filled."""
        ...


@dataclasses.dataclass(frozen=True)
class Between:
    """Among the devices of a mesh axis, each of which holds its own tokens and experts.

    Attributes:
      axis: mesh axis, manual where this is called.
      num_ranks: its size.
    """

    axis: str
    num_ranks: int

    def rank(self) -> jax.Array:
        return jax.lax.axis_index(self.axis)[None]

    def to_bins(self, x_PBC: jax.Array, filled_PB: jax.Array) -> jax.Array:
        del filled_PB
        _, bins, places, *rest = x_PBC.shape
        own = bins // self.num_ranks
        x = x_PBC.reshape(self.num_ranks, own, places, *rest)
        x = jax.lax.all_to_all(x, self.axis, split_axis=0, concat_axis=0)
        return jnp.moveaxis(x, 0, 1).reshape(own, self.num_ranks * places, *rest)

    def to_ranks(self, x_bX: jax.Array, filled_PB: jax.Array) -> jax.Array:
        del filled_PB
        own, places, *rest = x_bX.shape
        x = x_bX.reshape(own, self.num_ranks, places // self.num_ranks, *rest)
        x = jax.lax.all_to_all(jnp.moveaxis(x, 1, 0), self.axis, split_axis=0, concat_axis=0)
        return x.reshape(1, self.num_ranks * own, places // self.num_ranks, *rest)


@dataclasses.dataclass(frozen=True)
class Ragged(Between):
    """As `Between`; what is not filled does not travel. XLA for CPUs cannot do it.

    Of worth where buffers are for the worst case, as those of routers that drop nothing.
    """

    def to_bins(self, x_PBC: jax.Array, filled_PB: jax.Array) -> jax.Array:
        _, bins, places, *rest = x_PBC.shape
        own = bins // self.num_ranks
        starts_B, targets_B = self._places(bins, places)
        filled_B = filled_PB[0]
        arrived = jax.lax.ragged_all_to_all(
            x_PBC.reshape(bins * places, *rest),
            jnp.zeros((bins * places, *rest), x_PBC.dtype),
            starts_B,
            filled_B,
            targets_B,
            self._swapped(filled_B),
            axis_name=self.axis,
        )
        return arrived.reshape(own, self.num_ranks * places, *rest)

    def to_ranks(self, x_bX: jax.Array, filled_PB: jax.Array) -> jax.Array:
        own, of_all, *rest = x_bX.shape
        bins, places = own * self.num_ranks, of_all // self.num_ranks
        starts_B, targets_B = self._places(bins, places)
        filled_B = filled_PB[0]
        # What came from a rank goes back from where it was put to where it was taken.
        arrived = jax.lax.ragged_all_to_all(
            x_bX.reshape(bins * places, *rest),
            jnp.zeros((bins * places, *rest), x_bX.dtype),
            self._swapped(targets_B),
            self._swapped(filled_B),
            self._swapped(starts_B),
            filled_B,
            axis_name=self.axis,
        )
        return arrived.reshape(1, bins, places, *rest)

    def _places(self, bins: int, places: int) -> tuple[jax.Array, jax.Array]:
        """Returns where each bin's buffer starts here, and where it goes to with its rank."""
        numbers = jnp.arange(bins, dtype=jnp.int32)
        own = bins // self.num_ranks
        of_bin = (numbers % own) * self.num_ranks + jax.lax.axis_index(self.axis)
        return numbers * places, of_bin.astype(jnp.int32) * places

    def _swapped(self, x_B: jax.Array) -> jax.Array:
        """Returns of each rank what it says of this one's bins."""
        return jax.lax.all_to_all(x_B, self.axis, split_axis=0, concat_axis=0, tiled=True)


@dataclasses.dataclass(frozen=True)
class Everywhere:
    """Among all ranks, whose tokens are in one array: `replicas` times `num_ranks` times `pieces`.

    Attributes:
      num_ranks: ranks that share the experts.
      replicas: so many sets of ranks hold the same experts, the tokens of each set in one stretch.
      pieces: so many neighbours in the array, of one rank, hold pieces of the same rows.
    """

    num_ranks: int
    replicas: int = 1
    pieces: int = 1

    def rank(self) -> jax.Array:
        ranks = jnp.arange(self.num_ranks, dtype=jnp.int32)
        return jnp.tile(jnp.repeat(ranks, self.pieces), self.replicas)

    def to_bins(self, x_PBC: jax.Array, filled_PB: jax.Array) -> jax.Array:
        del filled_PB
        num_sources, bins, places, *rest = x_PBC.shape
        x = x_PBC.reshape(*self._shape, bins, places, *rest)
        x = constrain(x, *_BY_RANK, *[None] * (x.ndim - 3))
        x = jnp.moveaxis(x, (3, 2, 0), (0, 1, 2))
        x = constrain(x, *_BY_BIN, *[None] * (x.ndim - 3))
        return x.reshape(bins, num_sources * places, *rest)

    def to_ranks(self, x_bX: jax.Array, filled_PB: jax.Array) -> jax.Array:
        del filled_PB
        bins, places, *rest = x_bX.shape
        replicas, ranks, pieces = self._shape
        num_sources = replicas * ranks * pieces
        x = x_bX.reshape(bins, pieces, replicas, ranks, places // num_sources, *rest)
        x = constrain(x, *_BY_BIN, *[None] * (x.ndim - 3))
        x = jnp.moveaxis(x, (0, 1, 2), (3, 2, 0))
        x = constrain(x, *_BY_RANK, *[None] * (x.ndim - 3))
        return x.reshape(num_sources, bins, places // num_sources, *rest)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.replicas, self.num_ranks, self.pieces


def through_experts(
    x_PSD: jax.Array,
    routes: Routes,
    experts: Experts,
    exchange: Exchange,
    *,
    num_bins: int,
    capacity: int,
    local_capacity: int,
) -> jax.Array:
    """Returns what the experts make of each token, weighted as its routes say.

    Args:
      x_PSD: tokens.
      routes: where they go; every array with a leading P.
      experts: the weights of the experts held here, in the dtype of x.
      exchange: how buffers travel.
      num_bins: B, of all ranks together.
      capacity: C.
      local_capacity: tokens of one source rank that `routes.local` is for at most.

    Returns:
      [P, S, D], dtype of x; zeros for a token that no expert took.
    """
    num_sources = x_PSD.shape[0]
    num_routes, num_places = routes.bin_SR.shape[-1], num_bins * capacity
    is_served = routes.slot_SR < capacity
    place_PSR = jnp.where(is_served, routes.bin_SR * capacity + routes.slot_SR, num_places)
    place_PSR = place_PSR.astype(jnp.int32)
    route_PN = jax.vmap(_inverse, in_axes=(0, None))(place_PSR.reshape(num_sources, -1), num_places)
    is_filled_PBC = (route_PN < place_PSR[0].size).reshape(num_sources, num_bins, capacity)
    filled_PB = jnp.sum(is_filled_PBC, axis=2, dtype=jnp.int32)

    def sent(x, index, inverse):
        taken = jax.vmap(take_rows)(x, index, inverse)
        taken = taken.reshape(num_sources, num_bins, capacity, *taken.shape[2:])
        return exchange.to_bins(taken, filled_PB)

    y_local = None
    if routes.local is not None:
        max_served = num_sources * local_capacity
        y_local, experts = _local_experts(x_PSD, routes.local, experts, exchange, max_served)
    x_bXD = sent(x_PSD, route_PN // num_routes, place_PSR)
    if routes.inner is None:
        y_bXD = buffered_experts(x_bXD, experts)
    else:
        of_routes = place_PSR.reshape(num_sources, -1, 1)
        y_bXD = _inner_experts(x_bXD, routes.inner, experts, route_PN, of_routes, sent)
    back_PND = exchange.to_ranks(y_bXD, filled_PB).reshape(num_sources, num_places, -1)
    y_PSD = jax.vmap(combine_rows)(back_PND, routes.weight_SR, place_PSR, route_PN)
    if y_local is not None:
        y_PSD = y_PSD + y_local
    return y_PSD.astype(x_PSD.dtype)


def _inner_experts(x_bXD, inner: Inner, experts: Experts, route_PN, place_PN1, sent):
    """The experts that a route names within its bin, which see the rows that have arrived there."""
    bins, places, _ = x_bXD.shape
    per_bin = experts.w1_EDF.shape[0] // bins
    num_sources, *_, chosen = inner.expert_SRK.shape
    expert_PNK, weight_PNK = (
        x.reshape(num_sources, -1, chosen) for x in (inner.expert_SRK, inner.weight_SRK)
    )
    weight_bXK = sent(weight_PNK, route_PN, place_PN1)
    # Counted from 1, so that a place which nobody took, with its 0, names no expert.
    named_bXK = sent((expert_PNK + 1).astype(jnp.float32), route_PN, place_PN1).astype(jnp.int32)
    first_b11 = per_bin * jnp.arange(bins)[:, None, None]
    expert_bXK = jnp.where(named_bXK > 0, first_b11 + named_bXK - 1, bins * per_bin)
    y_NKD, _ = chosen_experts(
        x_bXD.reshape(bins * places, -1), expert_bXK.reshape(bins * places, chosen), experts
    )
    y_bXKD = y_NKD.reshape(bins, places, chosen, -1)
    return _weighted(y_bXKD, weight_bXK).astype(x_bXD.dtype)


def _local_experts(x_PSD, local: Local, experts: Experts, exchange: Exchange, max_served: int):
    """One more expert of the token's own rank: nothing is sent. Returns the weights as well."""
    num_sources, num_tokens, dim = x_PSD.shape
    held = experts.w1_EDF.shape[0]
    expert_PS = local.expert_S
    if isinstance(exchange, Everywhere):
        expert_PS = expert_PS + (held // exchange.num_ranks) * exchange.rank()[:, None]
    expert_N1 = jnp.where(local.needed_S, expert_PS, held).reshape(-1, 1)
    y_N1D, experts = chosen_experts(
        x_PSD.reshape(-1, dim), expert_N1, experts, max_served=max_served
    )
    y_PS1D = y_N1D.reshape(num_sources, num_tokens, 1, dim)
    return _weighted(y_PS1D, local.weight_S[..., None]), experts


def _weighted(y_RD: jax.Array, weight_R: jax.Array) -> jax.Array:
    """Sums [..., R, D] by weights [..., R], in fp32 at least."""
    wide: Any = jnp.promote_types(y_RD.dtype, jnp.float32)
    return jnp.einsum("...rd,...r->...d", y_RD.astype(wide), weight_R.astype(wide))


def _inverse(place_N: jax.Array, num_places: int) -> jax.Array:
    """Returns int32 [places], which of the N went to each place; N for none."""
    num = place_N.shape[0]
    numbers = jnp.arange(num, dtype=jnp.int32)
    return jnp.full(num_places, num, jnp.int32).at[place_N].set(numbers, mode="drop")
