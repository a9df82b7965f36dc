"""Routers by top-k: as it is, rectified, dropless; and expert choice. Sam has a file of its own.

Each is a frozen record of settings that maps logits to `ops.routing.Routes`, rank by rank and in
fp32; it owns no parameters and knows nothing of how tokens travel. Where a paper and its public
code disagree, or one of them is not known, the reading is a field.

Legend: S tokens of one source rank, E experts, R routes of a token, N experts of one rank.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from t5x_style.ops import routing
from t5x_style.ops.routing import Inner, Local, Priority, Routes
from t5x_style.ops.sam_router import Sam

__all__ = ["Dropless", "ExpertChoice", "Rectify", "Sam", "TopK"]

StraightThrough = Literal["formula", "code"]
BalanceChoices = Literal["first", "all"]
FillPriority = Literal["candidate_score", "top1_score"]
FailedRoutes = Literal["paper", "code"]


@dataclasses.dataclass(frozen=True)
class _TokenChoice:
    """Settings of routers in which a token chooses the experts with the highest gates.

    Attributes:
      k: experts of a token; no more than there are count.
      renormalize: divide the gates of a token's served routes by their sum, a constant of the
        gradient; False uses gates of the softmax over all experts as they are.
      straight_through: the gradient of a factor that is 1 because the token has one choice only.
        "formula" is that of g / constant(g), as for more choices; "code" that of g alone, smaller
        by the gate, as the authors' k=1 gate (arXiv 2402.12399, where they differ).
      balance_coefficient: factor of the loss "balance".
      z_coefficient: factor of the loss "z", the mean square of log sum exp of the logits.
      balance_choices: "first" as in arXiv 2402.12399 and Switch; "all" sums over the k choices, so
        that perfect balance costs k.
    """

    k: int = 1
    _: dataclasses.KW_ONLY
    renormalize: bool = True
    straight_through: StraightThrough = "formula"
    balance_coefficient: float = 0.01
    z_coefficient: float = 0.0
    balance_choices: BalanceChoices = "first"

    def __post_init__(self) -> None:
        routing.check_k(self)
        routing.check_options(
            self, straight_through=StraightThrough, balance_choices=BalanceChoices
        )

    @property
    def experts_per_token(self) -> float:
        """Experts that a token is meant to go through."""
        return self.k

    @property
    def loss_coefficients(self) -> dict[str, float]:
        """The factor of each loss."""
        return {"balance": self.balance_coefficient, "z": self.z_coefficient}

    def num_logits(self, num_experts: int, *, num_ranks: int = 1) -> int:
        """Returns E."""
        del num_ranks
        return num_experts

    def _losses(self, log_gate_SE, log_z_S, expert_SR, is_real_S):
        num_counted = 1 if self.balance_choices == "first" else self.k
        return {
            "balance": routing.balance_loss(log_gate_SE, expert_SR[:, :num_counted], is_real_S),
            "z": routing.mean_of_real(jnp.square(log_z_S), is_real_S),
        }

    def _weights(self, log_gate_SR, count_SR, num_choices):
        """Factors of a token's routes; the first num_choices columns are its choices."""
        weight_SR = routing.shares(log_gate_SR, count_SR, renormalize=self.renormalize)
        if self.renormalize and self.straight_through == "code" and num_choices == 1:
            gate_S = jnp.exp(log_gate_SR[:, 0])
            one_S = 1 + (gate_S - jax.lax.stop_gradient(gate_S))
            weight_SR = weight_SR.at[:, 0].set(jnp.where(count_SR[:, 0] > 0, one_S, 0))
        return weight_SR


@dataclasses.dataclass(frozen=True)
class TopK(_TokenChoice):
    """The k best experts, each with room for `ceil(S / E * capacity_factor * k)` tokens of a rank.

    All first choices take slots before any second one; factors are renormalised after dropping
    (the router that arXiv 2402.12399 sets out from).

    Attributes:
      capacity_factor: slots over what perfect balance needs.
      min_capacity: least slots of an expert for one rank; for decoding, where S is small.
      priority: who goes first within a choice: the token with the larger first gate, or the earlier
        one. By gate a token's routes depend on later ones.
    """

    capacity_factor: float = 1.0
    min_capacity: int = 0
    priority: Priority = "gate"

    def __post_init__(self) -> None:
        super().__post_init__()
        routing.check_options(self, priority=Priority)

    def num_bins(self, num_experts: int, *, num_ranks: int = 1) -> int:
        """Returns E: each expert is a bin."""
        routing.experts_each(num_experts, num_ranks, "num_ranks")
        return num_experts

    def capacity(self, num_tokens: int, num_experts: int, *, num_ranks: int = 1) -> int:
        """Returns the slots of one expert for one source rank of num_tokens."""
        del num_ranks
        tokens_each = num_tokens * min(self.k, num_experts) / num_experts
        return routing.capacity(
            tokens_each, self.capacity_factor, least=self.min_capacity, most=num_tokens
        )

    def __call__(
        self, logits_SE: jax.Array, is_real_S: jax.Array, *, rank: int | jax.Array, num_ranks: int
    ) -> Routes:
        """Routes the tokens of one rank; see `ops.routing.Router`."""
        num_tokens, num_experts = logits_SE.shape
        capacity = self.capacity(num_tokens, num_experts)
        log_gate_SE, log_z_S = routing.log_gates(logits_SE, is_real_S)
        k = min(self.k, num_experts)
        expert_SR = routing.best(log_gate_SE, min(k + self._num_fill_ins(), num_experts))
        log_gate_SR = jnp.take_along_axis(log_gate_SE, expert_SR, axis=1)
        num_routes = expert_SR.shape[1]
        priority_SR = self._priorities(log_gate_SR, k)
        slot_SR = routing.take_slots(expert_SR, priority_SR, is_real_S, num_experts, capacity)
        kept_SR = slot_SR < capacity

        per_rank = routing.experts_each(num_experts, num_ranks, "num_ranks")
        start = jnp.asarray(rank, jnp.int32) * per_rank
        own_SN = jax.lax.dynamic_slice_in_dim(log_gate_SE, start, per_rank, axis=1)
        num_failed_S = jnp.where(is_real_S, self._num_failed(kept_SR, k), 0)
        is_rescued_S = self._rescued(num_failed_S > 0, priority_SR[:, 0])
        num_rescued_S = jnp.where(is_rescued_S, num_failed_S, 0)
        own_S = jnp.argmax(own_SN, axis=-1).astype(jnp.int32)
        log_own_S1 = jnp.take_along_axis(own_SN, own_S[:, None], axis=1)
        weight_SR = self._weights(
            jnp.concatenate([log_gate_SR, log_own_S1], axis=1),
            jnp.concatenate([kept_SR.astype(jnp.int32), num_rescued_S[:, None]], axis=1),
            num_routes,
        )
        local = None
        if self._has_local():
            local = Local(own_S, weight_SR[:, -1], is_rescued_S)
        metrics = routing.usage(
            kept_SR,
            is_real_S,
            num_slots=num_experts * capacity,
            num_choices=k,
            local=local,
        )
        if self.local_capacity(num_tokens) < num_tokens and self._has_local():
            is_left_S = (num_failed_S > 0) & ~is_rescued_S
            metrics["intra_rank_overflow"] = routing.share_of(is_left_S, is_real_S)
        return Routes(
            bin_SR=expert_SR,
            slot_SR=slot_SR,
            weight_SR=weight_SR[:, :-1],
            inner=None,
            local=local,
            losses=self._losses(log_gate_SE, log_z_S, expert_SR[:, :k], is_real_S),
            metrics=metrics,
            chosen_E=routing.count_of(expert_SR[:, 0], is_real_S, num_experts),
            load_E=routing.count_of(expert_SR, kept_SR, num_experts),
        )

    def local_capacity(self, num_tokens: int) -> int:
        """Returns the tokens of a source rank that its own experts take beside the exchange."""
        del num_tokens
        return 0

    # What `Rectify` changes.

    def _num_fill_ins(self) -> int:
        return 0

    def _has_local(self) -> bool:
        return False

    def _priorities(self, log_gate_SR, k):
        del k
        if self.priority == "gate":
            return jnp.broadcast_to(log_gate_SR[:, :1], log_gate_SR.shape)
        return jnp.zeros_like(log_gate_SR)

    def _num_failed(self, kept_SR, k):
        """How often an expert of the own rank is to count for each token."""
        del k
        return jnp.zeros(kept_SR.shape[0], jnp.int32)

    def _rescued(self, is_in_need_S, priority_S):
        """Which tokens get one."""
        del priority_S
        return is_in_need_S


@dataclasses.dataclass(frozen=True)
class Rectify(TopK):
    """Top-k that gives dropped tokens a local expert and empty slots to runners-up.

    arXiv 2402.12399 and the authors' code. Tokens that fewer than k experts
    accepted get the best expert h of their own rank, which counts as often as routes failed:
    `(sum_kept g E(x) + d g_h E_h(x)) / constant(sum_kept g + d g_h)`. A fill-in is the token's
    (k+1)-th choice; it takes leftover slots only, the capacity stays that of top-k, and one that
    found no slot is no failed route. With neither this is `TopK`.

    Attributes:
      intra_rank: Intra-GPU Rectification. It depends on how many ranks there are: with one it makes
        the router dropless.
      max_intra_rank: share of a rank's tokens that its own experts take at most, for memory known
        beforehand; those that come last in `priority` go without and are in the metric
        "intra_rank_overflow". None for as many as need it.
      fill_in: Fill-in Rectification.
      fill_priority: who fills in first: "candidate_score", the larger gate of the (k+1)-th choice,
        as the equations are restated elsewhere; "top1_score", the larger first gate, as the code.
      failed_routes: d, where it is not 0: "paper", k less the routes served; "code", k + 1 less
        them if fill-ins are on.
    """

    _: dataclasses.KW_ONLY
    intra_rank: bool = True
    max_intra_rank: float | None = None
    fill_in: bool = True
    fill_priority: FillPriority = "candidate_score"
    failed_routes: FailedRoutes = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        routing.check_options(self, fill_priority=FillPriority, failed_routes=FailedRoutes)
        if self.max_intra_rank is not None and not 0 < self.max_intra_rank <= 1:
            raise ValueError(
                f"Rectify.max_intra_rank = {self.max_intra_rank}: set it to a share of the tokens, "
                "above 0 and up to 1, to None for no limit, or intra_rank to False for none."
            )

    def local_capacity(self, num_tokens: int) -> int:
        """Returns the tokens of a source rank that its own experts take at most."""
        if not self.intra_rank:
            return 0
        share = 1.0 if self.max_intra_rank is None else self.max_intra_rank
        return routing.capacity(num_tokens, share, least=0, most=num_tokens)

    def _num_fill_ins(self) -> int:
        return int(self.fill_in)

    def _has_local(self) -> bool:
        return self.intra_rank

    def _priorities(self, log_gate_SR, k):
        of_choices_SR = super()._priorities(log_gate_SR, k)
        if self.fill_priority == "candidate_score":
            of_fill_ins_SR = log_gate_SR
        else:
            of_fill_ins_SR = jnp.broadcast_to(log_gate_SR[:, :1], log_gate_SR.shape)
        is_choice_R = jnp.arange(log_gate_SR.shape[1]) < k
        return jnp.where(is_choice_R, of_choices_SR, of_fill_ins_SR)

    def _num_failed(self, kept_SR, k):
        if not self.intra_rank:
            return super()._num_failed(kept_SR, k)
        num_served_S = jnp.sum(kept_SR, axis=-1, dtype=jnp.int32)
        num_wanted = k if self.failed_routes == "paper" else kept_SR.shape[1]
        return jnp.where(num_served_S < k, num_wanted - num_served_S, 0)

    def _rescued(self, is_in_need_S, priority_S):
        if self.max_intra_rank is None:
            return is_in_need_S
        capacity = self.local_capacity(is_in_need_S.shape[0])
        one_bin_S1 = jnp.zeros((is_in_need_S.shape[0], 1), jnp.int32)
        slot_S1 = routing.take_slots(one_bin_S1, priority_S[:, None], is_in_need_S, 1, capacity)
        return slot_S1[:, 0] < capacity


@dataclasses.dataclass(frozen=True)
class Dropless(_TokenChoice):
    """The k best experts, none of them ever full: bins are the ranks, with room for the worst case.

    A token's experts on one rank are separate routes to it, with one expert inside each.
    """

    def num_bins(self, num_experts: int, *, num_ranks: int = 1) -> int:
        """Returns the number of ranks."""
        routing.experts_each(num_experts, num_ranks, "num_ranks")
        return num_ranks

    def capacity(self, num_tokens: int, num_experts: int, *, num_ranks: int = 1) -> int:
        """Returns the routes that num_tokens of a source rank could send to one rank at most."""
        per_rank = routing.experts_each(num_experts, num_ranks, "num_ranks")
        return num_tokens * min(self.k, per_rank)

    def local_capacity(self, num_tokens: int) -> int:
        """Returns 0: nothing stays with its own rank by rule."""
        del num_tokens
        return 0

    def __call__(
        self, logits_SE: jax.Array, is_real_S: jax.Array, *, rank: int | jax.Array, num_ranks: int
    ) -> Routes:
        """Routes the tokens of one rank; see `ops.routing.Router`."""
        del rank
        num_tokens, num_experts = logits_SE.shape
        capacity = self.capacity(num_tokens, num_experts, num_ranks=num_ranks)
        per_rank = routing.experts_each(num_experts, num_ranks, "num_ranks")
        log_gate_SE, log_z_S = routing.log_gates(logits_SE, is_real_S)
        k = min(self.k, num_experts)
        expert_SR = routing.best(log_gate_SE, k)
        log_gate_SR = jnp.take_along_axis(log_gate_SE, expert_SR, axis=1)
        bin_SR = expert_SR // per_rank
        in_order_SR = jnp.zeros_like(log_gate_SR)
        slot_SR = routing.take_slots(bin_SR, in_order_SR, is_real_S, num_ranks, capacity)
        kept_SR = jnp.broadcast_to(is_real_S[:, None], slot_SR.shape)
        return Routes(
            bin_SR=bin_SR,
            slot_SR=slot_SR,
            weight_SR=self._weights(log_gate_SR, kept_SR.astype(jnp.int32), k),
            inner=Inner((expert_SR % per_rank)[..., None], kept_SR[..., None].astype(jnp.float32)),
            local=None,
            losses=self._losses(log_gate_SE, log_z_S, expert_SR, is_real_S),
            metrics=routing.usage(
                kept_SR,
                is_real_S,
                num_slots=num_ranks * capacity,
                num_choices=k,
            ),
            chosen_E=routing.count_of(expert_SR[:, 0], is_real_S, num_experts),
            load_E=routing.count_of(expert_SR, kept_SR, num_experts),
        )


@dataclasses.dataclass(frozen=True)
class ExpertChoice:
    """A baseline: each expert takes its best `ceil(S / E * capacity_factor)` real tokens by gate.

    arXiv 2202.09368, section 3: balanced by construction, so without losses, but a token may get
    any number of experts, and which ones depends on all others, later ones included.

    Attributes:
      capacity_factor: mean experts of a token.
    """

    capacity_factor: float = 1.0

    @property
    def experts_per_token(self) -> float:
        """Experts that a token is meant to go through."""
        return self.capacity_factor

    @property
    def loss_coefficients(self) -> dict[str, float]:
        """None: there are no losses."""
        return {}

    def num_logits(self, num_experts: int, *, num_ranks: int = 1) -> int:
        """Returns E."""
        del num_ranks
        return num_experts

    def num_bins(self, num_experts: int, *, num_ranks: int = 1) -> int:
        """Returns E: each expert is a bin."""
        routing.experts_each(num_experts, num_ranks, "num_ranks")
        return num_experts

    def capacity(self, num_tokens: int, num_experts: int, *, num_ranks: int = 1) -> int:
        """Returns the slots of one expert for one source rank of num_tokens."""
        del num_ranks
        return routing.capacity(
            num_tokens / num_experts, self.capacity_factor, least=0, most=num_tokens
        )

    def local_capacity(self, num_tokens: int) -> int:
        """Returns 0: nothing stays with its own rank by rule."""
        del num_tokens
        return 0

    def __call__(
        self, logits_SE: jax.Array, is_real_S: jax.Array, *, rank: int | jax.Array, num_ranks: int
    ) -> Routes:
        """Routes the tokens of one rank, with a route to each expert; see `ops.routing.Router`."""
        del rank
        num_tokens, num_experts = logits_SE.shape
        routing.experts_each(num_experts, num_ranks, "num_ranks")
        capacity = self.capacity(num_tokens, num_experts)
        log_gate_SE, _ = routing.log_gates(logits_SE, is_real_S)
        bin_SE = jnp.broadcast_to(jnp.arange(num_experts, dtype=jnp.int32), logits_SE.shape)
        score_SE = jnp.where(is_real_S[:, None], jax.lax.stop_gradient(log_gate_SE), -jnp.inf)
        place_SE = jnp.argsort(jnp.argsort(-score_SE, axis=0), axis=0)
        kept_SE = (place_SE < capacity) & is_real_S[:, None]
        return Routes(
            bin_SR=bin_SE,
            slot_SR=jnp.where(kept_SE, place_SE, capacity).astype(jnp.int32),
            weight_SR=routing.shares(log_gate_SE, kept_SE.astype(jnp.int32), renormalize=False),
            inner=None,
            local=None,
            losses={},
            metrics=routing.usage(
                kept_SE,
                is_real_S,
                num_slots=num_experts * capacity,
                num_choices=0,
            ),
            chosen_E=routing.count_of(jnp.argmax(log_gate_SE, axis=-1), is_real_S, num_experts),
            load_E=jnp.sum(kept_SE.astype(jnp.float32), axis=0),
        )
