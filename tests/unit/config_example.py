"""Functions and classes for the configuration tests to bind; no part of the package."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

calls: list[dict[str, object]] = []


@dataclasses.dataclass(frozen=True)
class Model:
    num_layers: int
    dropout_rate: float = 0.0
    activation: Literal["silu", "gelu"] = "silu"


def constant_schedule(rate: float = 1e-3) -> float:
    return rate


def train(
    run_dir: str,
    model: Model | None = None,
    num_steps: int = 10,
    learning_rate: float = 1e-3,
    schedule: Callable[..., float] | None = None,
    files: Sequence[str | Path] = (),
    shares: Mapping[str, float] | None = None,
    verbose_name: str | None = None,
    dry_run: bool = False,
) -> None:
    """Trains nothing.

    Args:
      run_dir: where nothing is written.
    """
    calls.append(dict(locals()))
    if num_steps == 13:
        raise ValueError(f"num_steps {num_steps} brings bad luck: set train.num_steps")
    if num_steps == 15:
        raise KeyError("a bug")


def other(run_dir: str = "", fraction: float = 0.5) -> str:
    return f"{run_dir}{fraction}"


NOT_CALLABLE = 3
