"""Switch-and-Mixture (SAM): one group of experts for a token, and several experts inside it.

Legend: S tokens of one source rank, E experts, G groups of N experts each, K experts of a token, R
its routes (one).
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from t5x_style.ops import routing
from t5x_style.ops.routing import Inner, Priority, Routes

GroupScore = Literal["sum", "max", "top2_sum"]
Combine = Literal["raw", "group_norm", "conditional", "switch_scaled"]
Gating = Literal["shared", "separate"]


@dataclasses.dataclass(frozen=True)
class Sam:
    """Switch-and-Mixture: one group of experts for each token, and k experts inside it.

    One softmax p over all experts scores both steps (arXiv 2110.07431; the gating of a public
    implementation, as the authors gave none). One copy of a token goes to its group, whatever k is;
    nothing is dropped inside. A route has the factor 1, its experts have theirs in `Routes.inner`.

    Attributes:
      num_groups: G, equal parts of the experts in order; None for one group on each rank.
      k: experts of a token inside its group, no more than there are.
      gating: "shared", as above, or "separate": group and expert have softmaxes of their own, p of
        an expert is the product of both, and logits are those of the experts, then of the groups.
        A later two-level router of authors of follow-up work; with "switch_scaled" its output.
      capacity_factor: slots of a group for one source rank over S / G.
      min_capacity: least slots of a group for one rank.
      priority: who goes first: the token with the higher score of its group, or the earlier one.
      group_score: what a group is chosen by: the paper's sum of p, the largest p, or the sum of the
        two largest (as later group-limited routers do).
      combine: factor of expert e: "raw" p_e, "group_norm" p_e / sum of the k chosen (1 and without
        gradient for k=1), "conditional" p_e / p of the group, "switch_scaled" p of the group times
        "group_norm". All have their full gradient. What the paper does was not readable; "raw" is
        the public implementation's, with outputs that shrink as 1 / E.
      align_grad_tau: whether the alignment loss also pulls up the weakest expert chosen; the public
        implementation leaves that out.
      balance_coefficient: factor of "balance", summed over the k choices, so that balance costs k.
      group_balance_coefficient: factor of "group_balance", the same for groups. Not of the paper.
      align_coefficient: factor of "align", the sum over experts outside the group of what their p
        exceeds that of the weakest chosen one. The paper's coefficients are not known.
      z_coefficient: factor of "z", the mean square of log sum exp of the logits (of the groups, if
        these are scored separately).
    """

    num_groups: int | None = None
    k: int = 2
    capacity_factor: float = 1.0
    _: dataclasses.KW_ONLY
    min_capacity: int = 0
    priority: Priority = "gate"
    group_score: GroupScore = "sum"
    combine: Combine = "raw"
    gating: Gating = "shared"
    align_grad_tau: bool = True
    balance_coefficient: float = 0.01
    group_balance_coefficient: float = 0.0
    align_coefficient: float = 0.01
    z_coefficient: float = 0.0

    def __post_init__(self) -> None:
        routing.check_k(self)
        routing.check_options(
            self, priority=Priority, group_score=GroupScore, combine=Combine, gating=Gating
        )

    @property
    def experts_per_token(self) -> float:
        """Experts that a token is meant to go through."""
        return self.k

    @property
    def loss_coefficients(self) -> dict[str, float]:
        """The factor of each loss."""
        return {
            "balance": self.balance_coefficient,
            "group_balance": self.group_balance_coefficient,
            "align": self.align_coefficient,
            "z": self.z_coefficient,
        }

    def num_logits(self, num_experts: int, *, num_ranks: int = 1) -> int:
        """Returns E, and as many more as there are groups if they are scored separately."""
        num_groups = self.num_bins(num_experts, num_ranks=num_ranks)
        return num_experts + (num_groups if self.gating == "separate" else 0)

    def num_bins(self, num_experts: int, *, num_ranks: int = 1) -> int:
        """Returns the number of groups."""
        num_groups = num_ranks if self.num_groups is None else self.num_groups
        setting = "num_ranks" if self.num_groups is None else "Sam.num_groups"
        routing.experts_each(num_experts, num_groups, setting)
        return num_groups

    def capacity(self, num_tokens: int, num_experts: int, *, num_ranks: int = 1) -> int:
        """Returns the slots of one group for one source rank of num_tokens."""
        tokens_each = num_tokens / self.num_bins(num_experts, num_ranks=num_ranks)
        return routing.capacity(
            tokens_each, self.capacity_factor, least=self.min_capacity, most=num_tokens
        )

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
        if self.gating == "separate":
            num_experts -= num_ranks if self.num_groups is None else self.num_groups
        num_groups = self.num_bins(num_experts, num_ranks=num_ranks)
        capacity = self.capacity(num_tokens, num_experts, num_ranks=num_ranks)
        per_group = num_experts // num_groups
        k = min(self.k, per_group)
        log_gate_SE, log_z_S = self._log_gates(logits_SE, is_real_S, num_groups, per_group)
        log_gate_SGN = log_gate_SE.reshape(num_tokens, num_groups, per_group)
        log_group_SG = jax.nn.logsumexp(log_gate_SGN, axis=-1)

        score_SG = self._group_scores(log_gate_SGN)
        group_SR = routing.best(score_SG, 1)
        priority_SR = jnp.take_along_axis(score_SG, group_SR, axis=1)
        if self.priority == "index":
            priority_SR = jnp.zeros_like(priority_SR)
        slot_SR = routing.take_slots(group_SR, priority_SR, is_real_S, num_groups, capacity)
        kept_SR = slot_SR < capacity

        inside_SN = jnp.take_along_axis(log_gate_SGN, group_SR[..., None], axis=1)[:, 0]
        inner_SK = routing.best(inside_SN, k)
        log_gate_SK = jnp.take_along_axis(inside_SN, inner_SK, axis=1)
        log_group_S1 = jnp.take_along_axis(log_group_SG, group_SR, axis=1)
        weight_SK = jnp.where(kept_SR, self._combined(log_gate_SK, log_group_S1), 0)
        expert_SK = group_SR * per_group + inner_SK

        losses = {
            "balance": routing.balance_loss(log_gate_SE, expert_SK, is_real_S),
            "group_balance": routing.balance_loss(log_group_SG, group_SR, is_real_S),
            "align": self._align_loss(log_gate_SGN, log_gate_SK, group_SR, is_real_S),
            "z": routing.mean_of_real(jnp.square(log_z_S), is_real_S),
        }
        metrics = routing.usage(
            kept_SR,
            is_real_S,
            num_slots=num_groups * capacity,
            num_choices=1,
        )
        flat_SK = routing.best(log_gate_SE, k)
        is_aligned_S = jnp.all(flat_SK // per_group == group_SR, axis=-1) & is_real_S
        metrics["aligned"] = (
            jnp.sum(is_aligned_S.astype(jnp.float32)),
            jnp.sum(is_real_S.astype(jnp.float32)),
        )
        return Routes(
            bin_SR=group_SR,
            slot_SR=slot_SR,
            weight_SR=kept_SR.astype(jnp.float32),
            inner=Inner(inner_SK[:, None], weight_SK[:, None]),
            local=None,
            losses=losses,
            metrics=metrics,
            chosen_E=routing.count_of(expert_SK[:, 0], is_real_S, num_experts),
            load_E=routing.count_of(expert_SK, kept_SR, num_experts),
        )

    def _log_gates(self, logits_SE, is_real_S, num_groups, per_group):
        """Log p of each expert, and the log of the denominator, of the groups' if they have one."""
        if self.gating == "shared":
            return routing.log_gates(logits_SE, is_real_S)
        num_tokens = logits_SE.shape[0]
        of_experts_SE, of_groups_SG = jnp.split(logits_SE, [num_groups * per_group], axis=1)
        log_group_SG, log_z_S = routing.log_gates(of_groups_SG, is_real_S)
        inside, _ = routing.log_gates(
            of_experts_SE.reshape(-1, per_group), jnp.repeat(is_real_S, num_groups)
        )
        log_gate_SGN = log_group_SG[..., None] + inside.reshape(num_tokens, num_groups, per_group)
        return log_gate_SGN.reshape(num_tokens, -1), log_z_S

    def _group_scores(self, log_gate_SGN):
        if self.group_score == "max":
            return jnp.max(log_gate_SGN, axis=-1)
        if self.group_score == "sum":
            return jax.nn.logsumexp(log_gate_SGN, axis=-1)
        log_best_SG2 = jax.lax.top_k(log_gate_SGN, min(2, log_gate_SGN.shape[-1]))[0]
        return jax.nn.logsumexp(log_best_SG2, axis=-1)

    def _combined(self, log_gate_SK, log_group_S1):
        log_chosen_S1 = jax.nn.logsumexp(log_gate_SK, axis=-1, keepdims=True)
        shift_S1 = {
            "raw": jnp.zeros_like(log_group_S1),
            "group_norm": -log_chosen_S1,
            "conditional": -log_group_S1,
            "switch_scaled": log_group_S1 - log_chosen_S1,
        }
        return jnp.exp(log_gate_SK + shift_S1[self.combine])

    def _align_loss(self, log_gate_SGN, log_gate_SK, group_SR, is_real_S):
        tau_S = jnp.exp(log_gate_SK[:, -1])
        if not self.align_grad_tau:
            tau_S = jax.lax.stop_gradient(tau_S)
        excess_SGN = jax.nn.relu(jnp.exp(log_gate_SGN) - tau_S[:, None, None])
        is_outside_SG = jnp.arange(log_gate_SGN.shape[1]) != group_SR
        excess_SGN = jnp.where(is_outside_SG[..., None], excess_SGN, 0)
        return routing.mean_of_real(jnp.sum(excess_SGN, axis=(1, 2)), is_real_S)
