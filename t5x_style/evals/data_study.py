"""What a study of training data comes to: the same model trained on the text of several stages.

As the comparison of corpora in WanJuan-CC (arXiv 2402.19282), small: bits per byte on text that
none of them holds, and how toxic samples are. The paper draws the share of texts S(t) that score t
or more and reports the area under it; that area is the mean score.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_style.evals.studies import Run, difference, over_seeds, plus_minus

# Thresholds of the shares of toxic samples, by the names of the shares.
TAILS = {"toxic_half": 0.5, "toxic_most": 0.8}


@dataclasses.dataclass(frozen=True)
class Arm:
    """What was trained on.

    Attributes:
      name: of the stage.
      documents, tokens, num_bytes: in its token store.
      epochs: how often training went through it.
      shared: part of the held-out texts' n-grams that occur in it all the same.
    """

    name: str
    documents: int
    tokens: int
    num_bytes: int
    epochs: float
    shared: float


@dataclasses.dataclass(frozen=True)
class Result:
    """What one run came to.

    Attributes:
      runs: name of held-out text to the run's metrics on it.
      toxicity: of its samples, from `toxicity`; None where nothing judged them.
    """

    runs: Mapping[str, Run]
    toxicity: Mapping[str, float] | None = None


def toxicity(scores: np.ndarray) -> dict[str, float]:
    """Returns the area under the survival curve of scores, and its values at `TAILS`.

    Args:
      scores: [N], from 0 to 1, higher is worse.
    """
    shares = {name: float((scores >= least).mean()) for name, least in TAILS.items()}
    return {"toxicity": float(np.mean(scores, dtype=np.float64)), **shares}


def summed_up(arms: Sequence[Arm], results: Mapping[str, Sequence[Result]]) -> list[dict[str, Any]]:
    """Returns a row for each arm, as JSON values.

    Args:
      arms: in the order of the pipeline; the first is what all others are compared with.
      results: of each arm by name, one for each seed, in the same order of seeds.

    Returns:
      Rows that hold the arm, and for each held-out text the mean and standard deviation over seeds
      of bits per byte, of the difference to the first arm and of that to the arm before, seed by
      seed, the number of seeds in which the first arm was worse, and the course over steps.
    """
    rows = []
    for number, arm in enumerate(arms):
        own, first = results[arm.name], results[arms[0].name]
        before = results[arms[number - 1].name] if number else None
        row = {
            **dataclasses.asdict(arm),
            "num_seeds": len(own),
            "step_secs": statistics.median(
                run.step_secs for result in own for run in result.runs.values()
            ),
            "held_out": {name: _of_text(name, own, first, before) for name in own[0].runs},
        }
        judged = [result.toxicity for result in own if result.toxicity is not None]
        if judged:
            for name in judged[0]:
                row |= over_seeds(name, [toxicities[name] for toxicities in judged])
        rows.append(row)
    return rows


def _of_text(
    name: str, own: Sequence[Result], first: Sequence[Result], before: Sequence[Result] | None
) -> dict[str, Any]:
    bits = _bits(own, name)
    row: dict[str, Any] = over_seeds("bits_per_byte", bits)
    if before is not None:
        of_first = _bits(first, name)
        row |= difference("difference", bits, of_first)
        row |= difference("step", bits, _bits(before, name))
        row["seeds_better"] = sum(a < b for a, b in zip(bits, of_first, strict=True))
    courses = [result.runs[name].evaluations["bits_per_byte"] for result in own]
    row["steps"] = courses[0][0]
    row["course"] = [
        over_seeds("bits_per_byte", at_step)
        for at_step in zip(*(values for _, values in courses), strict=True)
    ]
    return row


def _bits(results: Sequence[Result], name: str) -> list[float]:
    return [result.runs[name].last()["bits_per_byte"] for result in results]


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as tables in plain text, one for each held-out text."""
    lines = []
    for held_out in rows[0]["held_out"]:
        lines.append(
            f"{held_out + ':':14} {'tokens':>10} {'epochs':>7} {'bits per byte':>16} "
            f"{'less ' + rows[0]['name']:>17} {'less the last':>17} {'toxicity':>16}"
        )
        for row in rows:
            found = row["held_out"][held_out]
            lines.append(
                f"{row['name']:14} {row['tokens']:>10,} {row['epochs']:>7.2f} "
                f"{plus_minus(found, 'bits_per_byte'):>16} "
                f"{plus_minus(found, 'difference', signed=True):>17} "
                f"{plus_minus(found, 'step', signed=True):>17} {plus_minus(row, 'toxicity'):>16}"
            )
    return "\n".join(lines)
