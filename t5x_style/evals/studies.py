"""What studies have in common: arms, each trained once for every seed, and compared seed by seed.

Runs of one seed read the same batches or start from the same weights, so that the differences
between their arms are surer than the arms' own figures. What an arm is, and what is measured of it
beside losses, is each study's affair.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_style.evals.report.inputs import read_metrics

STUDY = "study.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a finished run has written of itself.

    Attributes:
      evaluations: metric on the held-out data to its steps and values.
      step_secs: median time of a training step.
    """

    evaluations: Mapping[str, tuple[list[int], list[float]]]
    step_secs: float

    def last(self) -> dict[str, float]:
        """Returns each metric of the last evaluation."""
        return {name: values[-1] for name, (_, values) in self.evaluations.items()}


def read_run(metrics: Path, validation: str, setting: str) -> Run:
    """Reads the metrics of a run.

    Args:
      metrics: its metrics.jsonl.
      validation: name of the held-out data.
      setting: the gin name of what names that, for an error.

    Raises:
      ValueError: it has no evaluation of that name.
    """
    read = read_metrics(metrics)
    prefix = f"eval/{validation}/"
    evaluations = {}
    for name in read.columns:
        if name.startswith(prefix):
            steps, values = read.column(name)
            evaluations[name.removeprefix(prefix)] = (steps.tolist(), values.tolist())
    if "loss" not in evaluations:
        raise ValueError(
            f"{metrics.parent} was not evaluated on {validation!r}: name it in {setting}, and "
            "delete that folder for the run to be trained again"
        )
    return Run(evaluations, statistics.median(read.column("timing/step_secs_p50")[1].tolist()))


def over_seeds(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Returns the mean as `name` and the standard deviation, None of one, as `name_deviation`."""
    return {name: statistics.mean(values), f"{name}_deviation": deviation(values)}


def deviation(values: Sequence[float]) -> float | None:
    """Returns the standard deviation; None of fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def difference(
    name: str, values: Sequence[float], others: Sequence[float]
) -> dict[str, float | None]:
    """Returns what `over_seeds` does of the differences to another arm, seed by seed."""
    return over_seeds(name, [a - b for a, b in zip(values, others, strict=True)])


def plus_minus(row: Mapping[str, Any], name: str, *, signed: bool = False) -> str:
    """Returns a value and its deviation over seeds, a dash where there is none."""
    if row.get(name) is None:
        return "–"
    value = f"{row[name]:+.4f}".replace("-", "−") if signed else f"{row[name]:.4f}"
    spread = row[f"{name}_deviation"]
    return value if spread is None else f"{value} ± {spread:.4f}"
