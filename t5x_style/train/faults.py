"""What a run does when something goes wrong, and how tests make it go wrong.

A signal to stop becomes a flag that the loop reads between steps. A process of a job that fails
ends at once, so that its peers do not wait for it; one that hangs ends itself. Steps whose gradient
is not finite are skipped, and too many in a row end the run.
"""

import contextlib
import dataclasses
import faulthandler
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, Self

import jax
import jax.numpy as jnp

FAULT_VARIABLE = "T5X_STYLE_FAULT"
HUNG_EXIT_CODE = 75
_SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}


class Stopped(SystemExit):
    """Raised once the state is saved after a signal to stop; exits the process with 0."""

    def __init__(self, step: int):
        super().__init__(0)
        self.step = step


class StopSignals:
    """While open, turns the first SIGTERM or SIGINT into a flag; a second SIGINT interrupts."""

    def __init__(self) -> None:
        self._requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # With several processes jax's coordination service watches SIGTERM, for all to agree.
        watched = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in watched}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._requested = True
        # Nothing that takes a lock may be called here, print included.
        os.write(2, f"\n{signal.Signals(number).name}: saving after this step\n".encode())

    def requested(self, step: int) -> bool:
        """Whether to save and end after `step`; all processes of a job get the same answer."""
        if jax.process_count() == 1:
            return self._requested
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def ending_the_job_on_error() -> Iterator[None]:
    """Makes an error end this process at once where it is one of several.

    Otherwise it would wait for its peers at exit, and they for it, for minutes.
    """
    try:
        yield
    except Stopped:
        raise
    except BaseException:
        if jax.process_count() > 1:
            traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        raise


class Watchdog:
    """Ends the process, all stacks printed, where the loop gives no sign of life.

    Args:
      limit_secs: longest time between two signs; None for no limit.
    """

    def __init__(self, limit_secs: float | None):
        self._limit_secs = math.inf if limit_secs is None else limit_secs
        self._last_secs = time.monotonic()
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        if self._limit_secs != math.inf:
            self._last_secs = time.monotonic()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()

    def beat(self) -> None:
        """Gives a sign of life."""
        self._last_secs = time.monotonic()

    def _watch(self) -> None:
        while not self._closed.wait(self._limit_secs / 10):
            silent_secs = time.monotonic() - self._last_secs
            if silent_secs > self._limit_secs:
                print(
                    f"no step was finished for {silent_secs:.0f} s, more than "
                    f"job.LoopSettings.step_timeout_secs = {self._limit_secs:.0f}; all stacks:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(HUNG_EXIT_CODE)


class SkipGuard:
    """Counts skipped steps in a row and ends the run at a limit.

    Args:
      limit: so many in a row are too many.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._in_a_row = 0

    def check(self, step: int, pairs: Mapping[str, tuple[Any, Any]]) -> None:
        """Takes the metrics of a step.

        Raises:
          ValueError: the limit is reached.
        """
        self._in_a_row = self._in_a_row + 1 if pairs["skipped"][0] else 0
        if self._in_a_row >= self._limit:
            first = step - self._in_a_row + 1
            raise ValueError(
                f"the gradients of steps {first} to {step} were not finite, and their updates were "
                f"skipped; {self._limit} in a row is the limit (job.LoopSettings."
                "max_skipped_steps). Lower schedules.WarmupCosine.peak or lengthen its "
                "warmup_steps, lower optimizers.AdamW.clip_norm, or look at the data of these "
                "steps; the newest checkpoint is from before them"
            )


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault to make: `kind@point:step`."""

    kind: str
    point: str
    step: int


class FaultInjector:
    """Makes the faults that the environment asks for, so that tests can see what follows.

    `T5X_STYLE_FAULT` lists them, comma separated: `kill@step:7` before the seventh step,
    `kill@save:10` once the save of step 10 has begun; in PPO also `iteration:3` before the third
    iteration and `sampled:3` once its answers are kept. Kinds are kill, term, stop (as SIGSTOP
    does), raise, hang and, for steps, nan (the batch's floating point values become NaN).
    """

    KINDS = ("kill", "term", "stop", "raise", "hang", "nan")
    POINTS = ("step", "save", "iteration", "sampled")

    def __init__(self, text: str | None = None):
        text = os.environ.get(FAULT_VARIABLE, "") if text is None else text
        self._faults = [self._parse(word) for word in text.split(",") if word]

    def _parse(self, word: str) -> Fault:
        kind, _, rest = word.strip().partition("@")
        point, _, step = rest.partition(":")
        if kind not in self.KINDS or point not in self.POINTS or not step.isdigit():
            raise ValueError(
                f"{FAULT_VARIABLE}: {word!r} is not KIND@POINT:STEP with KIND of {self.KINDS} and "
                f"POINT of {self.POINTS}"
            )
        return Fault(kind, point, int(step))

    def at(self, point: str, step: int) -> None:
        """Does what is asked for at this point."""
        for fault in self._faults:
            if (fault.point, fault.step) != (point, step):
                continue
            if fault.kind in _SIGNALS:
                os.kill(os.getpid(), _SIGNALS[fault.kind])
            elif fault.kind == "raise":
                raise RuntimeError(f"{FAULT_VARIABLE} asked for this at {point} {step}")
            elif fault.kind == "hang":
                threading.Event().wait()

    def batch(self, step: int, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the step's batch, poisoned if that is asked for."""
        if Fault("nan", "step", step) not in self._faults:
            return batch
        return {
            name: x * jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else x
            for name, x in batch.items()
        }
