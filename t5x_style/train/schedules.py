"""Learning rates as functions of the step, and the division of a plan's steps into phases.

A schedule is a frozen dataclass that is called with the step inside the compiled train step. The
step counts batches from the start of the whole plan, not of one run: a later phase that continues
an earlier one keeps counting, so one cosine spans as many phases as share its settings, and a phase
with a schedule of its own says at which step that begins.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up to a peak, then half a cosine down to a fraction of it.

    With s steps since `start_step`, W warm-up steps and D = total_steps - start_step:

        s < W:   peak * (s + 1) / W
        s >= W:  peak * (f + (1 - f) * (1 + cos(pi * min(1, (s - W) / (D - W)))) / 2)

    The shape of InternLM2's pre-training (arXiv 2403.17297, section 3.3), f = 0.1.

    Attributes:
      peak: highest learning rate.
      total_steps: step of the whole plan at which the cosine reaches its floor.
      warmup_steps: length of the warm-up.
      start_step: step of the whole plan at which this schedule begins.
      final_fraction: floor, as a fraction of `peak`.
    """

    peak: float = 3e-4
    total_steps: int = 1000
    warmup_steps: int = 0
    start_step: int = 0
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.warmup_steps < 0 or self.start_step < 0 or not 0 <= self.final_fraction <= 1:
            raise ValueError(
                f"schedules.{name}: warmup_steps and start_step must not be negative and "
                f"final_fraction must lie in [0, 1]; got {self}"
            )
        if self.total_steps <= self.start_step + self.warmup_steps:
            raise ValueError(
                f"schedules.{name}.total_steps = {self.total_steps} leaves no step after "
                f"start_step = {self.start_step} and warmup_steps = {self.warmup_steps}: raise "
                "total_steps or shorten the warm-up"
            )

    def __call__(self, step: jax.Array | int) -> jax.Array:
        """Returns the learning rate of the update after `step` batches, a float32 scalar."""
        since_steps = jnp.asarray(step, jnp.float32) - self.start_step
        warmup = self.peak * (since_steps + 1) / max(self.warmup_steps, 1)
        decay_steps = self.total_steps - self.start_step - self.warmup_steps
        progress = jnp.clip((since_steps - self.warmup_steps) / decay_steps, 0.0, 1.0)
        floor = self.final_fraction
        cosine = self.peak * (floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress)))
        return jnp.where(since_steps < self.warmup_steps, warmup, cosine).astype(jnp.float32)


def phase_end_step(total_steps: int, shares: Sequence[float], index: int) -> int:
    """Returns the step at which a phase of a plan ends; phase 0 begins at step 0.

    Ends are rounded cumulative shares, so that phases neither overlap nor leave a step out; a
    phase begins where the one before it ends. Every phase has at least one step.

    Args:
      total_steps: steps of the whole plan.
      shares: weight of each phase in order, of any positive sum; InternLM2's are 90, 9 and 1
        (arXiv 2403.17297, section 3.3).
      index: which phase, from 0; -1 gives step 0, where the first phase begins.

    Raises:
      ValueError: a share is not positive, `index` is out of range, or there are fewer steps than
        phases.
    """
    if not shares or min(shares) <= 0:
        raise ValueError(
            f"schedules.phase_end_step.shares must be positive numbers; got {list(shares)}"
        )
    if not -1 <= index < len(shares):
        raise ValueError(
            f"schedules.phase_end_step.index = {index}, but shares has {len(shares)} phases"
        )
    if total_steps < len(shares):
        raise ValueError(
            f"schedules.phase_end_step.total_steps = {total_steps} is too few for "
            f"{len(shares)} phases of at least one step"
        )
    end_step = 0
    for phase in range(index + 1):
        rounded = round(total_steps * sum(shares[: phase + 1]) / sum(shares))
        later_phases = len(shares) - phase - 1
        end_step = min(max(rounded, end_step + 1), total_steps - later_phases)
    return end_step
