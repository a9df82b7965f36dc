"""Where metrics go: the console, JSON lines and TensorBoard, each a writer in a list."""

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

import jax

from t5x_style.train import run_folder
from t5x_style.train.tensorboard import TensorBoardWriter

_BAR_WIDTH = 24
_REDRAW_SECS = 0.1
# What the console shows of an evaluation.
_SHOWN_OF_EVALUATION = ("loss", "bits_per_byte", "accuracy")
# What it shows of training steps, with label and format.
_SHOWN = {
    "timing/compile_secs": ("compiled in secs", "{:.1f}"),
    "train/loss": ("loss", "{:.4f}"),
    "train/bits_per_byte": ("bits/byte", "{:.4f}"),
    "train/accuracy": ("accuracy", "{:.3f}"),
    "train/grad_norm": ("grad norm", "{:.3f}"),
    "train/learning_rate": ("lr", "{:.2e}"),
    "timing/tokens_per_sec": ("tok/s", "{:,.0f}"),
    "timing/mfu": ("MFU", "{:.1%}"),
    "timing/data_wait_fraction": ("data wait", "{:.1%}"),
}

# The writers that `make_writers` knows.
NAMES = ("console", "json_lines", "tensorboard")


class Writer(Protocol):
    """Takes lines of metrics."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the values of a step."""
        ...

    def progress(self, step: int) -> None:
        """Learns that a step is done."""
        ...

    def close(self) -> None:
        """Writes out what is held back."""
        ...


class ConsoleWriter:
    """A progress bar on a terminal, plain lines elsewhere.

    Args:
      total_steps: step at which the bar is full.
      name: shown before each line.
      stream: where to print.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        name: str = "",
        stream: IO[str] | None = None,
    ):
        self._stream = sys.stdout if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._total_steps = total_steps
        self._first_step = 0
        self._name = f"{name} " if name else ""
        self._shown = ""
        self._start_secs: float | None = None
        self._drawn_secs = 0.0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Prints the values that people watch."""
        shown = [
            f"{label} {form.format(values[name])}"
            for name, (label, form) in _SHOWN.items()
            if name in values
        ] or [
            f"{name} {value:.4f}"
            for name, value in values.items()
            if name.rpartition("/")[2] in _SHOWN_OF_EVALUATION
        ]
        text = " | ".join(shown)
        if self._is_terminal and "train/loss" in values:
            self._shown = text
            self._draw(step)
        else:
            end = "\x1b[K\n" if self._is_terminal else "\n"
            start = "\r" if self._is_terminal else ""
            print(
                f"{start}{self._name}step {step}/{self._total_steps} | {text}",
                end=end,
                file=self._stream,
                flush=True,
            )

    def progress(self, step: int) -> None:
        """Moves the bar, at most ten times a second."""
        now_secs = time.monotonic()
        if self._start_secs is None:
            # The first step ends when all is compiled: time left is reckoned from here.
            self._start_secs, self._first_step = now_secs, step
        if self._is_terminal and now_secs - self._drawn_secs >= _REDRAW_SECS:
            self._drawn_secs = now_secs
            self._draw(step)

    def close(self) -> None:
        """Leaves the bar as it stands and goes to the next line."""
        if self._is_terminal:
            print(file=self._stream, flush=True)

    def _draw(self, step: int) -> None:
        done = min(step / max(self._total_steps, 1), 1.0)
        filled = round(done * _BAR_WIDTH)
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        steps_here = step - self._first_step
        left = ""
        if steps_here > 0 and self._start_secs is not None:
            step_secs = (time.monotonic() - self._start_secs) / steps_here
            left = f"{_clock(step_secs * (self._total_steps - step))} left "
        text = f"{self._name}[{bar}] {step}/{self._total_steps} {left}{self._shown}"
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{text[:width]}\x1b[K", end="", file=self._stream, flush=True)


class JsonLinesWriter:
    """One JSON object a line, {"step": ..., "time_secs": ..., "train/loss": ...}.

    Lines after `first_step`, which a killed run wrote and this one will write again, are dropped,
    and so is a line that the kill cut short.

    Args:
      path: the file, made or gone on with.
      first_step: step at which this process began.
    """

    def __init__(self, path: str | Path, *, first_step: int = 0):
        self._path = Path(path)
        kept = [
            line for line in _complete_lines(self._path) if json.loads(line)["step"] <= first_step
        ]
        partial = self._path.with_name(f".{self._path.name}.partial")
        partial.write_text("".join(line + "\n" for line in kept))
        os.replace(partial, self._path)
        self._file = open(self._path, "a")  # noqa: SIM115

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line and hands it to the operating system."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def progress(self, step: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def make_writers(
    names: Sequence[str], run_dir: str | Path, total_steps: int, first_step: int
) -> list[Writer]:
    """Returns the writers of these names for a run folder; none but on the first process.

    Args:
      names: of `NAMES`.
      run_dir: the run folder.
      total_steps: step that the run ends at.
      first_step: step that this process begins at.

    Raises:
      ValueError: a name is not known.
    """
    if unknown := sorted(set(names) - set(NAMES)):
        raise ValueError(f"train.train.writer_names: {unknown} are not among {NAMES}")
    if jax.process_index() != 0:
        return []
    folder = Path(run_dir)
    made: list[Writer] = []
    if "console" in names:
        made.append(ConsoleWriter(total_steps, name=folder.name))
    if "json_lines" in names:
        made.append(JsonLinesWriter(folder / run_folder.METRICS, first_step=first_step))
    if "tensorboard" in names:
        board = TensorBoardWriter(folder / run_folder.TENSORBOARD, first_step=first_step)
        with contextlib.suppress(FileNotFoundError):
            text = (folder / run_folder.CONFIG).read_text()
            board.write_text(run_folder.CONFIG, f"```\n{text}\n```")
        made.append(board)
    return made


def _complete_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            json.loads(line)
        except json.JSONDecodeError:
            break
        lines.append(line)
    return lines


def _clock(secs: float) -> str:
    minutes, secs = divmod(round(secs), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
