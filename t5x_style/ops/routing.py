"""What a router of experts says about the tokens of one source rank, and what routers share.

A router turns the logits of one rank's tokens into `Routes`: destinations, places in the send
buffers, factors, losses and metrics. It is decided rank by rank, before anything travels, with
capacities for each source rank (as the code of arXiv 2402.12399 has it). How tokens travel
is left to whoever reads `Routes`; the routers are in `ops.routers` and `ops.sam_router`.

Legend: S tokens of one source rank, padding included, E experts, R routes of a token, K experts
inside a bin. A bin is a destination with a buffer of its own: an expert or a group of them.
"""

import math
from typing import Any, Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp

Priority = Literal["gate", "index"]
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Inner(NamedTuple):
    """Experts inside a bin, for routes to a bin of several experts: evaluated where the bin lives.

    Attributes:
      expert_SRK: int32, number of the expert within its bin.
      weight_SRK: fp32 factor on the expert's output there; 0 where the route has no slot.
    """

    expert_SRK: jax.Array
    weight_SRK: jax.Array


class Local(NamedTuple):
    """One more expert on the token's own rank (Intra-GPU Rectification, arXiv 2402.12399).

    Attributes:
      expert_S: int32, number among the rank's own experts.
      weight_S: fp32 factor on its output; 0 where the token needs none.
      needed_S: bool.
    """

    expert_S: jax.Array
    weight_S: jax.Array
    needed_S: jax.Array


class Routes(NamedTuple):
    """Where the tokens of one source rank go.

    The layer's output for token s is `sum_r weight_SR * y_r + local weight * E_local(x)`, where y_r
    is `E_bin(x)`, or `sum_k inner weight * E_(bin * n + inner expert)(x)` for bins of n experts.

    Attributes:
      bin_SR: int32 destination of each route.
      slot_SR: int32 place in that bin's buffer of this source rank; == capacity where the route got
        none, as those of padding.
      weight_SR: fp32 factor by the sender on what comes back; 0 where slot == capacity.
      inner: which experts of the bin; None where a bin is one expert.
      local: an expert without travel; None for routers that have none.
      losses: fp32 scalars, means over the real tokens, not multiplied by coefficients.
      metrics: (numerator, denominator) sums over this rank, fp32 scalars.
      chosen_E: fp32, real tokens whose first choice each expert is, dropped or not.
      load_E: fp32, real tokens with a slot on the way to each expert; `local` does not count.
    """

    bin_SR: jax.Array
    slot_SR: jax.Array
    weight_SR: jax.Array
    inner: Inner | None
    local: Local | None
    losses: dict[str, jax.Array]
    metrics: Metrics
    chosen_E: jax.Array
    load_E: jax.Array


class Router(Protocol):
    """What `ops.routers` have in common."""

    @property
    def loss_coefficients(self) -> dict[str, float]:
        """The factor of each entry of `Routes.losses`."""
        ...

    @property
    def experts_per_token(self) -> float:
        """Experts that a token is meant to go through."""
        ...

    def num_logits(self, num_experts: int, *, num_ranks: int = 1) -> int:
        """Returns the columns of a router's matrix."""
        ...

    def num_bins(self, num_experts: int, *, num_ranks: int = 1) -> int:
        """Returns how many destinations there are over all ranks; each rank has equally many."""
        ...

    def capacity(self, num_tokens: int, num_experts: int, *, num_ranks: int = 1) -> int:
        """Returns the slots of one bin for one source rank of num_tokens, padding included."""
        ...

    def local_capacity(self, num_tokens: int) -> int:
        """Returns the tokens that one source rank of num_tokens has a local expert for at most."""
        ...

    def __call__(
        self, logits_SE: jax.Array, is_real_S: jax.Array, *, rank: int | jax.Array, num_ranks: int
    ) -> Routes:
        """Routes the tokens of one rank; can be vmapped over ranks.

        Args:
          logits_SE: scores of the experts, taken to fp32; `num_logits` columns.
          is_real_S: bool; False for padding, which gets no slot and counts nowhere.
          rank: where the tokens are; experts `rank * E / num_ranks` and on live there too.
          num_ranks: ranks that the experts are dealt out to, the same number to each.
        """
        ...


# Settings and sizes.


def check_options(router: Any, **options: Any) -> None:
    """Raises ValueError for fields with a value that their Literal does not have."""
    for field, literal in options.items():
        value = getattr(router, field)
        if value not in get_args(literal):
            raise ValueError(
                f"{type(router).__name__}.{field} = {value!r}: set it to one of {get_args(literal)}"
            )


def check_k(router: Any) -> None:
    """Raises ValueError if a token has no expert."""
    if router.k < 1:
        raise ValueError(f"{type(router).__name__}.k = {router.k}: a token needs an expert, set 1.")


def experts_each(num_experts: int, parts: int, setting: str) -> int:
    """Returns the experts of one of some equal parts.

    Raises:
      ValueError: they cannot be dealt out evenly.
    """
    if parts < 1 or num_experts % parts:
        raise ValueError(
            f"{num_experts} experts cannot be dealt out evenly to {setting} = {parts}: "
            f"change {setting} or num_experts."
        )
    return num_experts // parts


def capacity(tokens_each: float, capacity_factor: float, *, least: int, most: int) -> int:
    """Returns `ceil(tokens_each * capacity_factor)`, at least `least` and never above `most`."""
    # Rounded first: 10 * 1.1 is a little over 11 in binary, which is no reason for a 12th slot.
    wanted = math.ceil(round(tokens_each * capacity_factor, 6))
    return min(most, max(least, wanted))


# Gates, slots and weights.


def log_gates(logits_SE: jax.Array, is_real_S: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns log softmax over all experts, [S, E], and log of its denominator, [S], in fp32.

    Logits of padding are taken for 0, so that nothing there, be it NaN, reaches a gradient.
    """
    logits_SE = jnp.where(is_real_S[:, None], logits_SE.astype(jnp.float32), 0)
    log_z_S = jax.nn.logsumexp(logits_SE, axis=-1)
    return jax.nn.log_softmax(logits_SE, axis=-1), log_z_S


def best(score_SE: jax.Array, k: int) -> jax.Array:
    """Returns the k best columns of each row, best first and the lower of equal ones: int32."""
    # One after the other: top_k sorts whole rows on CPUs. Infinities stay above what is taken.
    left_SE = jnp.maximum(jax.lax.stop_gradient(score_SE), jnp.finfo(score_SE.dtype).min)
    columns = jnp.arange(score_SE.shape[1])
    chosen = []
    for _ in range(k):
        column_S = jnp.argmax(left_SE, axis=1)
        chosen.append(column_S)
        left_SE = jnp.where(columns == column_S[:, None], -jnp.inf, left_SE)
    return jnp.stack(chosen, axis=1).astype(jnp.int32)


def take_slots(
    bin_SR: jax.Array, priority_SR: jax.Array, is_real_S: jax.Array, num_bins: int, capacity: int
) -> jax.Array:
    """Deals out the slots of each bin: all first choices, then all second choices behind them.

    Routes beyond the capacity count as well, so that later choices get leftovers only
    (arXiv 2402.12399). One sort of all S * R routes; nothing has the size [S, E, C].

    Args:
      bin_SR: destinations, of distinct choices in order.
      priority_SR: within a choice the higher goes first; the lower token among equals.
      is_real_S: False for tokens that take no slot.
      num_bins: destinations.
      capacity: slots of each.

    Returns:
      int32 [S, R]; capacity where there was no slot left.
    """
    num_tokens, num_routes = bin_SR.shape
    # Padding goes to a bin behind the last.
    bins_SR = jnp.where(is_real_S[:, None], bin_SR, num_bins)
    bins = bins_SR.ravel()
    bin_and_choice = (bins_SR * num_routes + jnp.arange(num_routes)).ravel()
    order = jnp.lexsort((-jax.lax.stop_gradient(priority_SR).ravel(), bin_and_choice))
    sorted_bins = bins[order]
    ahead = jnp.arange(num_tokens * num_routes)
    is_first = jnp.diff(sorted_bins, prepend=-1) != 0
    place = ahead - jax.lax.cummax(jnp.where(is_first, ahead, 0))
    slot_SR = jnp.zeros_like(place).at[order].set(place, unique_indices=True).reshape(bin_SR.shape)
    is_kept_SR = is_real_S[:, None] & (slot_SR < capacity)
    return jnp.where(is_kept_SR, slot_SR, capacity).astype(jnp.int32)


def shares(log_gate_SR: jax.Array, count_SR: jax.Array, *, renormalize: bool) -> jax.Array:
    """Returns `count * g / constant(sum count * g)`, the sum over a token's routes.

    The denominator is a constant of the gradient as a whole, so that a router learns also where
    one route is left and its factor is 1 (arXiv 2402.12399). Formed of logarithms, so that a token
    whose strong experts were all full still gets factors that sum to 1, however small the gates of
    the others.

    Args:
      log_gate_SR: log g.
      count_SR: how often each route counts, 0 for not at all.
      renormalize: False returns `count * g`.
    """
    is_used_SR = count_SR > 0
    log_count_SR = jnp.log(jnp.maximum(count_SR, 1).astype(jnp.float32))
    terms_SR = jnp.where(is_used_SR, log_gate_SR + log_count_SR, -jnp.inf)
    if not renormalize:
        return jnp.exp(terms_SR)
    log_sum_S1 = jax.nn.logsumexp(jax.lax.stop_gradient(terms_SR), axis=-1, keepdims=True)
    has_any_S1 = jnp.any(is_used_SR, axis=-1, keepdims=True)
    return jnp.exp(terms_SR - jnp.where(has_any_S1, log_sum_S1, 0))


# Losses and metrics.


def count_of(index_SR: jax.Array, counted_SR: jax.Array, length: int) -> jax.Array:
    """Returns how often each number from 0 to length - 1 occurs where counted: fp32 [length]."""
    # Comparisons that fuse into the sum, where a scatter would queue up at the busy numbers.
    counted_SR = jnp.broadcast_to(counted_SR, index_SR.shape)
    is_hit = (jnp.arange(length)[:, None] == index_SR.ravel()) & counted_SR.ravel()
    return jnp.sum(is_hit.astype(jnp.float32), axis=1)


def mean_of_real(x_S: jax.Array, is_real_S: jax.Array) -> jax.Array:
    """Returns the mean over real tokens (0 if there is none) of [S, ...]: fp32 [...]."""
    is_real = jnp.expand_dims(is_real_S, tuple(range(1, x_S.ndim)))
    return jnp.sum(jnp.where(is_real, x_S, 0), axis=0) / jnp.maximum(jnp.sum(is_real_S), 1)


def balance_loss(log_gate_SE: jax.Array, expert_SR: jax.Array, is_real_S: jax.Array) -> jax.Array:
    """Returns `sum_r E * sum_e mean(gate_e) * mean(choice_r = e)` over real tokens: R if balanced.

    Choices count before any is dropped (arXiv 2101.03961, equation 4, for R = 1).
    """
    num_experts = log_gate_SE.shape[-1]
    gate_E = mean_of_real(jnp.exp(log_gate_SE), is_real_S)
    count_E = count_of(expert_SR, is_real_S[:, None], num_experts)
    return num_experts * jnp.dot(gate_E, count_E) / jnp.maximum(jnp.sum(is_real_S), 1)


def usage(
    kept_SR: jax.Array,
    is_real_S: jax.Array,
    *,
    num_slots: int,
    num_choices: int,
    local: Local | None = None,
) -> Metrics:
    """Returns how routes and slots were used, as (numerator, denominator).

    Args:
      kept_SR: bool, routes with a slot; those after num_choices are fill-ins.
      is_real_S: tokens that count.
      num_slots: of all bins of this source rank.
      num_choices: leading routes that are choices of the token, in order; 0 if experts choose.
      local: experts beside the exchange.
    """

    kept_SR = kept_SR & is_real_S[:, None]
    num_real = _total(is_real_S)
    is_routed_S = jnp.any(kept_SR, axis=-1)
    is_rescued_S = jnp.zeros_like(is_real_S) if local is None else local.needed_S & is_real_S
    is_filled_in_S = jnp.any(kept_SR[:, num_choices:], axis=-1) & (num_choices > 0)
    metrics = {
        f"overflow_choice_{r + 1}": (num_real - _total(kept_SR[:, r]), num_real)
        for r in range(num_choices)
    }
    return metrics | {
        "unrouted": (num_real - _total(is_routed_S), num_real),
        "served": share_of(is_routed_S | is_rescued_S, is_real_S),
        "intra_rank_served": share_of(is_rescued_S, is_real_S),
        "fill_in_served": share_of(is_filled_in_S, is_real_S),
        "slots_filled": (_total(kept_SR), jnp.float32(num_slots)),
    }


def share_of(is_so_S: jax.Array, is_real_S: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns how many real tokens are so, and how many there are: fp32."""
    return _total(is_so_S & is_real_S), _total(is_real_S)


def _total(x: jax.Array) -> jax.Array:
    return jnp.sum(x.astype(jnp.float32))


def spread(chosen_E: jax.Array) -> Metrics:
    """Returns how evenly tokens choose, as (numerator, denominator).

    That is the share of experts which none chose first, and the shares of tokens on the busiest and
    on the idlest fifth of the experts. To be told of all ranks together.
    """
    num_experts, num_real = chosen_E.shape[0], jnp.sum(chosen_E)
    fifth = max(1, num_experts // 5)
    sorted_E = jnp.sort(chosen_E)
    is_dead_E = jnp.where(num_real > 0, sorted_E == 0, False)
    return {
        "dead_experts": (_total(is_dead_E), jnp.float32(num_experts)),
        "busiest_share": (jnp.sum(sorted_E[-fifth:]), num_real),
        "idlest_share": (jnp.sum(sorted_E[:fifth]), num_real),
    }
