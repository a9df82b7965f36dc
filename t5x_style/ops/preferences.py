"""What a reward model is taught with: the focal ranking loss and the log barrier of arXiv
2403.17297, section 4.2.1, as written there, and the variants of the code that was released with it.

What the scores are of, and which of them are compared, is decided elsewhere. Legend: P pairs.
"""

import dataclasses

import jax
import jax.numpy as jnp

OUTSIDE = ("tangent", "clamp", "undefined")
PENALISED = ("mean", "sum")


@dataclasses.dataclass(frozen=True)
class PreferenceLoss:
    """The loss of a pair: ranking loss plus `penalty_weight` times the barrier of its scores.

    The paper's: gamma 2, a weight that the gradient flows through, 0.02 times the mean barrier.
    The released code's: the same ranking loss, 0.01 times the sum over both scores (which weighs
    the barrier alike), and scores clamped, so that those outside are not pulled back.

    Attributes:
      gamma: how fast easy pairs lose weight; 0 for the plain ranking loss.
      detached_weight: whether the weight is a constant to the gradient.
      penalty_weight: lambda; 0 for no barrier.
      penalty_of: "mean" or "sum" of the barriers of the chosen and the rejected score.
      bound: scores are kept between -bound and bound.
      outside: what the barrier is nearer to a bound than `margin` and beyond: "tangent" goes on in
        a straight line, "clamp" stays constant, "undefined" is the formula alone, infinite at the
        bound.
      margin: that distance.
    """

    gamma: float = 2.0
    detached_weight: bool = False
    penalty_weight: float = 0.02
    penalty_of: str = "mean"
    bound: float = 5.0
    outside: str = "tangent"
    margin: float = 1e-3

    def __post_init__(self) -> None:
        for name, allowed in (("outside", OUTSIDE), ("penalty_of", PENALISED)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"preferences.PreferenceLoss.{name} = {getattr(self, name)!r}: must be one of "
                    f"{allowed}"
                )
        if self.gamma < 0 or self.penalty_weight < 0 or not 0 < self.margin < self.bound:
            raise ValueError(
                f"preferences.PreferenceLoss.gamma = {self.gamma}, penalty_weight = "
                f"{self.penalty_weight}, margin = {self.margin}, bound = {self.bound}: the first "
                "two must not be negative, and the margin between 0 and the bound"
            )

    def of_pairs(
        self, chosen_P: jax.Array, rejected_P: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns loss, ranking loss and barrier of each pair, the last without its weight.

        Args:
          chosen_P: scores of the better responses, in at least fp32.
          rejected_P: scores of the others.
        """
        ranking_P = focal_ranking_loss(
            chosen_P - rejected_P, gamma=self.gamma, detached_weight=self.detached_weight
        )
        barriers_2P = log_barrier(
            jnp.stack([chosen_P, rejected_P]),
            bound=self.bound,
            outside=self.outside,
            margin=self.margin,
        )
        reduced = jnp.mean if self.penalty_of == "mean" else jnp.sum
        barrier_P = reduced(barriers_2P, axis=0)
        return ranking_P + self.penalty_weight * barrier_P, ranking_P, barrier_P


def focal_ranking_loss(
    differences: jax.Array, *, gamma: float = 2.0, detached_weight: bool = False
) -> jax.Array:
    """Returns `-(1 - 2 max(0, P - 1/2)) ** gamma * log P` with P = sigmoid(difference), in nats.

    The weight is 1 up to P = 1/2 and (2 (1 - P)) ** gamma above, and is taken from the logarithm of
    1 - P, so it neither rounds to 0 too early nor has an infinite slope for any gamma. At a
    difference of 0 the slope jumps; there it is the mean of both sides.

    Args:
      differences: score of the better response less that of the other, any shape, at least fp32.
      gamma: see `PreferenceLoss`.
      detached_weight: see there.
    """
    log_weight = gamma * jnp.minimum(0.0, jnp.log(2.0) + jax.nn.log_sigmoid(-differences))
    if detached_weight:
        log_weight = jax.lax.stop_gradient(log_weight)
    return -jnp.exp(log_weight) * jax.nn.log_sigmoid(differences)


def log_barrier(
    scores: jax.Array, *, bound: float = 5.0, outside: str = "tangent", margin: float = 1e-3
) -> jax.Array:
    """Returns `-(log(bound + x) + log(bound - x))` of each score x.

    At 0 it is -2 log(bound), so a loss with a barrier may be negative.

    Args:
      scores: any shape, at least fp32.
      bound, outside, margin: see `PreferenceLoss`.
    """
    if outside == "undefined":
        return _barrier(scores, bound)
    inner = jnp.clip(scores, margin - bound, bound - margin)
    if outside == "clamp":
        return _barrier(inner, bound)
    slope = 1 / (bound - inner) - 1 / (bound + inner)
    return _barrier(inner, bound) + slope * (scores - inner)


def _barrier(scores: jax.Array, bound: float) -> jax.Array:
    return -(jnp.log(bound + scores) + jnp.log(bound - scores))
