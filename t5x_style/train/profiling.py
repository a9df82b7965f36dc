"""A window of steps recorded for TensorBoard's profiler."""

from pathlib import Path
from typing import Self

import jax


class ProfileWindow:
    """Records the steps from `start_step` on, and closes what is open when it is left.

    Args:
      folder: TensorBoard's folder.
      start_step: first step of the window, counted from 1; None records nothing.
      num_steps: how many steps to record.
    """

    def __init__(self, folder: Path, start_step: int | None, num_steps: int):
        self._folder = folder
        self._start_step = start_step
        self._num_steps = num_steps
        self._steps_left: int | None = None

    def before(self, step: int) -> None:
        """Opens or closes the window before a step."""
        if self._steps_left is not None:
            self._steps_left -= 1
            if self._steps_left == 0:
                self.close()
        elif step == self._start_step:
            jax.profiler.start_trace(str(self._folder))
            self._steps_left = self._num_steps

    def close(self) -> None:
        """Writes what was recorded, if the window is open."""
        if self._steps_left is not None:
            jax.profiler.stop_trace()
            self._steps_left = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
