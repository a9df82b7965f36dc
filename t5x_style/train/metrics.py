"""What a run measures of itself: sums over steps, throughput, and when a line is written.

Metrics travel as (numerator, denominator) sums, so that microbatches, hosts and the steps between
two lines average rightly. The numbers of step t are read while step t + 1 computes, so the host
never makes a device wait.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from t5x_style.train.writers import Writer

Pairs = Mapping[str, tuple[Any, Any]]


class PairSums:
    """Running sums of (numerator, denominator) pairs, in float64 on the host.

    A numerator may be an array; each of its entries is then a metric, `NAME/INDEX/INDEX`.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[np.ndarray, float]] = {}

    def add(self, pairs: Pairs) -> None:
        """Adds a step's pairs."""
        for name, (numerator, denominator) in pairs.items():
            before = self._sums.get(name, (0.0, 0.0))
            total = before[0] + np.asarray(numerator, np.float64)
            self._sums[name] = (total, before[1] + float(denominator))

    def numerator(self, name: str) -> float:
        """Returns the sum of a metric's numerators, 0 if it was never added."""
        return float(self._sums.get(name, (0.0, 0.0))[0])

    def means(self) -> dict[str, float]:
        """Returns the ratio of each metric; one whose denominators sum to 0 is left out."""
        return {
            "/".join([name, *map(str, index)]): float(entry / denominator)
            for name, (numerator, denominator) in sorted(self._sums.items())
            if denominator != 0
            for index, entry in np.ndenumerate(numerator)
        }

    def state(self) -> dict[str, list[Any]]:
        """Returns the sums as JSON values."""
        return {name: [np.asarray(n).tolist(), d] for name, (n, d) in self._sums.items()}

    def restore(self, state: Mapping[str, Sequence[Any]]) -> None:
        """Goes on from sums that `state` returned."""
        self._sums = {name: (np.asarray(n, np.float64), d) for name, (n, d) in state.items()}


class MetricLog:
    """Collects the metrics of training steps and writes a line every so many steps.

    Args:
      writers: where lines go.
      every_steps: steps between two lines; lines stand at multiples of it and at the last step.
      flops_per_token: operations of a token as a function of the mean keys it attends to.
      peak_flops_per_sec: of all devices together; None leaves MFU out.
      on_step: called with each step and its pairs as numbers, one step late; may raise to end
        the run.
    """

    def __init__(
        self,
        writers: Sequence[Writer],
        *,
        every_steps: int,
        flops_per_token: Callable[[float | None], float],
        peak_flops_per_sec: float | None = None,
        on_step: Callable[[int, Pairs], None] | None = None,
    ):
        self._writers = writers
        self._every_steps = every_steps
        self._flops_per_token = flops_per_token
        self._peak_flops_per_sec = peak_flops_per_sec
        self._on_step = on_step
        self._window = PairSums()
        self._num_tokens = 0.0
        self._elapsed_secs = 0.0
        self._pending: tuple[int, Pairs] | None = None
        self._step_secs: list[float] = []
        self._window_tokens = 0.0
        self._wait_secs = 0.0
        self._last_time_secs = time.perf_counter()

    def record(self, step: int, pairs: Pairs, *, wait_secs: float) -> None:
        """Takes a step's metrics, still on the devices, and reads those of the step before.

        Args:
          step: number of steps done, this one included.
          pairs: sums over the global batch.
          wait_secs: how long the loop waited for the step's batch.
        """
        self._wait_secs += wait_secs
        self.flush()
        self._pending = (step, pairs)

    def flush(self) -> None:
        """Reads the metrics of the last step recorded, waiting for its end if need be."""
        if self._pending is None:
            return
        (step, pairs), self._pending = self._pending, None
        numbers = jax.device_get(pairs)
        self._tick()
        self._window.add(numbers)
        num_tokens = float(numbers.get("filled_slots", (0.0, 0.0))[0])
        self._num_tokens += num_tokens
        self._window_tokens += num_tokens
        if self._on_step is not None:
            self._on_step(step, numbers)
        for writer in self._writers:
            writer.progress(step)
        if step % self._every_steps == 0:
            self._write_line(step)

    def finish(self, step: int) -> None:
        """Writes a line of the steps since the last one, at the last step."""
        self.flush()
        if self._window.means():
            self._write_line(step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values of other origin, an evaluation's, say, as a line of their own."""
        line = {"time_secs": self._elapsed_secs, **values}
        for writer in self._writers:
            writer.write(step, line)

    def restart_clock(self) -> None:
        """Leaves out of step times what happened since the last step, an evaluation, say."""
        now_secs = time.perf_counter()
        self._elapsed_secs += now_secs - self._last_time_secs
        self._last_time_secs = now_secs

    def state(self) -> dict[str, Any]:
        """Returns what a restart needs to write the same lines, as JSON values."""
        return {
            "window": self._window.state(),
            "num_tokens": self._num_tokens,
            "elapsed_secs": self._elapsed_secs,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` returned."""
        self._window.restore(state["window"])
        self._num_tokens = state["num_tokens"]
        self._elapsed_secs = state["elapsed_secs"]

    def _tick(self) -> None:
        now_secs = time.perf_counter()
        self._step_secs.append(now_secs - self._last_time_secs)
        self._elapsed_secs += self._step_secs[-1]
        self._last_time_secs = now_secs

    def _write_line(self, step: int) -> None:
        means = self._window.means()
        values = {f"train/{name}": value for name, value in means.items()}
        values["train/tokens"] = self._num_tokens
        values |= self._timing(means.get("keys_per_token"))
        self.write(step, values)
        self._window = PairSums()
        self._step_secs, self._window_tokens, self._wait_secs = [], 0.0, 0.0

    def _timing(self, keys_per_token: float | None) -> dict[str, float]:
        if not self._step_secs:
            return {}
        total_secs = max(sum(self._step_secs), 1e-9)
        tokens_per_sec = self._window_tokens / total_secs
        p50, p95 = np.percentile(self._step_secs, [50, 95])
        flops_per_sec = tokens_per_sec * self._flops_per_token(keys_per_token)
        values = {
            "timing/tokens_per_sec": tokens_per_sec,
            "timing/flops_per_sec": flops_per_sec,
            "timing/data_wait_fraction": min(self._wait_secs / total_secs, 1.0),
            "timing/step_secs_p50": float(p50),
            "timing/step_secs_p95": float(p95),
        }
        if self._peak_flops_per_sec is not None:
            values["timing/mfu"] = flops_per_sec / self._peak_flops_per_sec
        return values
