"""One training step and one evaluation step, as functions to be compiled.

A step sums loss and gradient over microbatches and divides once by the sum of weights, so that
accumulating gives what one large batch gives. A gradient that is not finite changes nothing but two
counts: the step and the skipped steps. Legend: B rows of a batch, M microbatches.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from t5x_style.parallel import rules as axis_rules
from t5x_style.train.optimizers import clip_scale
from t5x_style.train.state import InitialisesParams, TrainState, trained_part, with_trained

Batch = Mapping[str, jax.Array]
MetricPairs = dict[str, tuple[jax.Array, jax.Array]]
Schedule = Callable[[jax.Array], jax.Array]


class HasLoss(Protocol):
    """What a step needs of an objective."""

    def loss(
        self, params: Any, batch: Batch, rng: jax.Array
    ) -> tuple[jax.Array, jax.Array, MetricPairs]:
        """Returns (sum of the loss over the batch, sum of its weights, metrics).

        Metrics are (numerator, denominator) pairs of sums over the batch. The numerator of
        "filled_slots" counts tokens; "keys_per_token" is the mean number of tokens that one
        attends to.
        """
        ...


class Objective(InitialisesParams, HasLoss, Protocol):
    """What is minimised: the contract between a loss and the loop."""

    def batch_shapes(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of a global batch."""
        ...

    def flops_per_token(self, length: int, keys_per_token: float | None = None) -> float:
        """Returns the operations of forward and backward pass for one token."""
        ...


def _split_rows(x: jax.Array, num_microbatches: int) -> jax.Array:
    """Returns [M, B/M, ...] of [B, ...]; a microbatch has rows of all devices, so none moves."""
    rows = x.reshape(x.shape[0] // num_microbatches, num_microbatches, *x.shape[1:])
    names = (None, "act_batch", "act_length", *(None for _ in x.shape[2:]))
    return axis_rules.constrain(jnp.swapaxes(rows, 0, 1), *names[: rows.ndim])


def in_microbatches(function: Callable[[Batch], Any], batch: Batch, num_microbatches: int) -> Any:
    """Returns the arrays [B, ...] of a function of a batch, taken in the parts of a training step.

    Args:
      function: from a batch of B/M rows to a tree of arrays [B/M, ...].
      batch: arrays [B, ...].
      num_microbatches: M.
    """
    if num_microbatches == 1:
        return function(batch)
    parts = {name: _split_rows(x, num_microbatches) for name, x in batch.items()}

    def joined(x: jax.Array) -> jax.Array:
        whole = jnp.swapaxes(x, 0, 1)
        return whole.reshape(-1, *whole.shape[2:])

    return jax.tree.map(joined, jax.lax.map(function, parts))


def make_train_step(
    objective: HasLoss,
    transformation: optax.GradientTransformation,
    schedule: Schedule,
    *,
    clip_norm: float | None,
    num_microbatches: int = 1,
    seed: int = 0,
    gradient_shardings: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, MetricPairs]]:
    """Returns (state, batch) -> (state, metrics), to be compiled with the state donated.

    Args:
      objective: the loss.
      transformation: turns clipped gradients into directions of descent, see `optimizers`.
      schedule: learning rate as a function of the state's step.
      clip_norm: greatest global norm of the gradient, None for no limit.
      num_microbatches: the batch is taken in this many parts, one after another.
      seed: of the objective's random numbers, which depend on step and microbatch alone.
      gradient_shardings: where the gradient of each parameter is summed; None leaves it to the
        compiler.
    """

    def gradient(params: Any, batch: Batch, rng: jax.Array) -> tuple[Any, ...]:
        def loss(trained: Any) -> tuple[jax.Array, tuple[jax.Array, MetricPairs]]:
            loss_sum, weight_sum, metrics = objective.loss(
                with_trained(params, trained), batch, rng
            )
            return loss_sum, (weight_sum, metrics)

        (loss_sum, (weight_sum, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(
            trained_part(objective, params)
        )
        if gradient_shardings is not None:
            shardings = trained_part(objective, gradient_shardings)
            grads = jax.lax.with_sharding_constraint(grads, shardings)
        return grads, loss_sum, weight_sum, metrics

    def summed_gradient(params: Any, batch: Batch, rng: jax.Array) -> tuple[Any, ...]:
        if num_microbatches == 1:
            return gradient(params, batch, rng)
        # Summed on the way, so that one microbatch's activations exist at a time.
        parts = {name: _split_rows(x, num_microbatches) for name, x in batch.items()}
        rngs = jax.random.split(rng, num_microbatches)
        first = {name: x[0] for name, x in parts.items()}
        shapes = jax.eval_shape(gradient, params, first, rngs[0])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, _sum_dtype(x.dtype)), shapes)

        def add(sums: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, gradient(params, *part)), None

        return jax.lax.scan(add, zeros, (parts, rngs))[0]

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, MetricPairs]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, loss_sum, weight_sum, metrics = summed_gradient(state.params, batch, rng)
        num_weights = jnp.where(weight_sum == 0, 1, weight_sum)
        grad_norm = (_norm(grads) / num_weights).astype(jnp.float32)
        is_finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss_sum)

        factor = clip_scale(grad_norm, clip_norm) / num_weights
        trained = trained_part(objective, state.params)
        grads = jax.tree.map(lambda g, p: (g * factor).astype(p.dtype), grads, trained)
        directions, opt_state = transformation.update(grads, state.opt_state, trained)
        learning_rate = schedule(state.step)
        updated = jax.tree.map(
            lambda p, d: (p - learning_rate * d).astype(p.dtype), trained, directions
        )

        def kept(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(is_finite, n, o), new, old)

        one = jnp.float32(1)
        metrics = metrics | {"grad_norm": (grad_norm, one)}
        zero_if_skipped = {
            name: (jnp.where(is_finite, numerator, 0), jnp.where(is_finite, denominator, 0))
            for name, (numerator, denominator) in metrics.items()
        }
        state = TrainState(
            step=state.step + 1,
            params=with_trained(state.params, kept(updated, trained)),
            opt_state=kept(opt_state, state.opt_state),
            skipped_steps=state.skipped_steps + jnp.where(is_finite, 0, 1),
        )
        always = {
            "learning_rate": (learning_rate, one),
            "skipped": (jnp.where(is_finite, 0.0, 1.0), one),
        }
        return state, zero_if_skipped | always

    return train_step


def make_eval_step(objective: HasLoss) -> Callable[[Any, Batch], MetricPairs]:
    """Returns (params, batch) -> metrics of the objective, with no gradient."""

    def eval_step(params: Any, batch: Batch) -> MetricPairs:
        return objective.loss(params, batch, jax.random.key(0))[2]

    return eval_step


def _norm(grads: Any) -> jax.Array:
    """Returns the global norm, summed in at least fp32."""
    wide = [g.astype(_sum_dtype(g.dtype)) for g in jax.tree.leaves(grads)]
    return jnp.sqrt(jnp.stack([jnp.sum(jnp.square(g)) for g in wide]).sum())


def _sum_dtype(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype
