"""What a study of routers comes to: its runs' last evaluations, summed up over seeds.

An arm is a router at a capacity factor, trained once for each seed. Arms are compared seed by seed,
since a seed's runs all start from the same weights and read the same batches.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_style.evals.studies import difference, over_seeds, plus_minus, read_run

# Of the routers' metrics those that a study tabulates, as means over its seeds.
RATES = (
    "unrouted",
    "fill_in_served",
    "intra_rank_served",
    "served",
    "slots_filled",
    "dead_experts",
    "busiest_share",
)


@dataclasses.dataclass(frozen=True)
class Result:
    """What one run came to.

    Attributes:
      loss: held-out loss after the last step, in nats per token.
      step_secs: median time of a training step.
      metrics: the routers' metrics on the held-out data, by name.
    """

    loss: float
    step_secs: float
    metrics: Mapping[str, float]


def read_result(metrics: Path, validation: str) -> Result:
    """Reads what a finished run has written of itself.

    Args:
      metrics: its metrics.jsonl.
      validation: name of the held-out data.

    Raises:
      ValueError: it has no evaluation of that name.
    """
    run = read_run(metrics, validation, "router_study.validation")
    last = run.last()
    routing = {
        name.removeprefix("moe/"): value for name, value in last.items() if name.startswith("moe/")
    }
    return Result(last["loss"], run.step_secs, routing)


def summed_up(results: Sequence[Result], plain: Sequence[Result] | None) -> dict[str, Any]:
    """Returns an arm's row, as JSON values.

    Args:
      results: of the arm, one for each seed.
      plain: of the router that the arm improves on, for the same seeds; None for none.

    Returns:
      Mean and standard deviation of the loss over seeds, the same of the difference to `plain`,
      means of `RATES`, the median step time, and first choices and load by mixture and expert.
    """
    losses = [result.loss for result in results]
    row: dict[str, Any] = {
        "num_seeds": len(results),
        **over_seeds("loss", losses),
        "step_secs": statistics.median(result.step_secs for result in results),
    }
    if plain is not None:
        row |= difference("difference", losses, [result.loss for result in plain])
    for name in RATES:
        values = [result.metrics[name] for result in results if name in result.metrics]
        if values:
            row[name] = statistics.mean(values)
    for name in ("chosen", "load"):
        row[name] = _by_mixture_and_expert(results, name)
    return row


def _by_mixture_and_expert(results: Sequence[Result], name: str) -> list[list[float]]:
    """Returns the means over seeds of `NAME/MIXTURE/EXPERT` as lists of lists."""
    places = [
        tuple(map(int, key.split("/")[1:]))
        for key in results[0].metrics
        if key.startswith(f"{name}/")
    ]
    rows: dict[int, dict[int, float]] = {}
    for mixture, expert in sorted(places):
        key = f"{name}/{mixture}/{expert}"
        values = [result.metrics.get(key, math.nan) for result in results]
        rows.setdefault(mixture, {})[expert] = statistics.mean(values)
    return [list(row.values()) for row in rows.values()]


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as a table in plain text, one line for each."""
    lines = [
        f"{'router':22} {'capacity':>8} {'loss':>16} {'less plain':>16} {'unrouted':>8} "
        f"{'fill-in':>8} {'intra':>8} {'filled':>8} {'busiest':>8} {'step':>8}"
    ]
    for row in rows:
        capacity = "–" if row["capacity_factor"] is None else f"{row['capacity_factor']:g}"
        rates = [
            f"{row[name]:8.1%}" if name in row else f"{'–':>8}"
            for name in (
                "unrouted",
                "fill_in_served",
                "intra_rank_served",
                "slots_filled",
                "busiest_share",
            )
        ]
        lines.append(
            f"{row['router']:22} {capacity:>8} {plus_minus(row, 'loss'):>16} "
            f"{plus_minus(row, 'difference', signed=True):>16} {' '.join(rates)} "
            f"{1e3 * row['step_secs']:5.0f} ms"
        )
    return "\n".join(lines)
