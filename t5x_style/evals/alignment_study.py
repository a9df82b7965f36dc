"""What an alignment study came to: accuracy with and without conditions, rounds, and ablations.

Every figure is the mean over seeds with its standard deviation, and differences are taken seed by
seed. Which runs a seed consists of is the verb's affair.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# Columns of a PPO run's metrics that are kept as curves.
CURVES = (
    "ppo/score",
    "ppo/quality",
    "ppo/kl",
    "ppo/words",
    "ppo/entropy",
    "critic/loss",
    "critic/unexplained_variance",
)
_TEXT = "bits_per_byte"
_POLICIES = ("sft", "early", "late")
_TAIL = 10  # iterations at a curve's end that stand for where it ended


def curves_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Returns [steps, values] of each curve that the metrics of a PPO run hold."""
    found: dict[str, list[list[float]]] = {}
    for line in lines:
        for name, value in line.items():
            is_held_out = name.startswith("eval/") and name.endswith(_TEXT)
            if name in CURVES or is_held_out:
                steps, values = found.setdefault(name, [[], []])
                steps.append(line["step"])
                values.append(value)
    return found


def spread(values: Sequence[float]) -> list[float]:
    """Returns mean and standard deviation; the latter is 0 of a single value."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return [statistics.fmean(values), deviation]


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the table of a study as JSON values.

    Args:
      results: of each seed, "conditional" and "unconditional" measures of reward models, the
        "rounds" and the "curves" of PPO runs.
    """
    domains = sorted(results[0]["conditional"]["scored"]["with_prompts"]["by_domain"])
    accuracy = {}
    for domain in ("all", *domains):
        with_, without = (
            [_accuracy(result[kind]["scored"][how], domain) for result in results]
            for kind, how in (
                ("conditional", "with_prompts"),
                ("unconditional", "without_prompts"),
            )
        )
        accuracy[domain] = {
            "conditional": spread(with_),
            "unconditional": spread(without),
            "difference": spread([a - b for a, b in zip(with_, without, strict=True)]),
        }
    num_rounds = min(len(result["rounds"]) for result in results)
    rounds = []
    for number in range(num_rounds):
        of_round = [result["rounds"][number] for result in results]
        row: dict[str, Any] = {
            "flaws": [_flaws(one) for one in of_round],
            "pairs": [sum(flaw["pairs"] for flaw in one["flaws"]) for one in of_round],
        }
        for policy in _POLICIES:
            for what in ("score", "quality", "words"):
                name = f"{what}_{policy}"
                if name in of_round[0]:
                    row[name] = spread([one[name] for one in of_round])
        rounds.append(row)
    ends = {
        name: {
            curve: spread([_end(result["curves"][name][curve]) for result in results])
            for curve in results[0]["curves"][name]
        }
        for name in results[0]["curves"]
    }
    starts = {
        name: {
            curve: spread([result["curves"][name][curve][1][0] for result in results])
            for curve in results[0]["curves"][name]
        }
        for name in results[0]["curves"]
    }
    return {
        "num_seeds": len(results),
        "accuracy": accuracy,
        "rounds": rounds,
        "starts": starts,
        "ends": ends,
        "curves": [result["curves"] for result in results],
    }


def as_text(contents: Mapping[str, Any]) -> str:
    """Returns the table of a study as plain text."""
    lines = [f"accuracy of reward models, {contents['num_seeds']} seeds"]
    lines.append(f"{'domain':14}{'conditional':>18}{'unconditional':>18}{'difference':>18}")
    for domain, row in contents["accuracy"].items():
        cells = (row[name] for name in ("conditional", "unconditional", "difference"))
        lines.append(f"{domain:14}" + "".join(f"{_shown(cell):>18}" for cell in cells))
    lines += ["", f"{'round':8}" + "".join(f"{f'{w} {p}':>18}" for w, p in _columns(contents))]
    for number, row in enumerate(contents["rounds"], start=1):
        cells = (row.get(f"{what}_{policy}") for what, policy in _columns(contents))
        lines.append(f"{number:<8}" + "".join(f"{_shown(cell):>18}" for cell in cells))
    for number, row in enumerate(contents["rounds"], start=1):
        lines.append(f"flaws found in round {number}: {row['flaws']}, pairs {row['pairs']}")
    curves = sorted({curve for of_run in contents["ends"].values() for curve in of_run})
    lines += ["", f"{'last iterations':32}" + "".join(f"{run:>20}" for run in contents["ends"])]
    for curve in curves:
        cells = (of_run.get(curve) for of_run in contents["ends"].values())
        lines.append(f"{curve:32}" + "".join(f"{_shown(cell):>20}" for cell in cells))
    return "\n".join(lines)


def _columns(contents: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (what, policy)
        for what in ("score", "quality")
        for policy in _POLICIES
        if f"{what}_{policy}" in contents["rounds"][0]
    ]


def _accuracy(scored: Mapping[str, Any], domain: str) -> float:
    return (scored if domain == "all" else scored["by_domain"][domain])["accuracy"]


def _flaws(about: Mapping[str, Any]) -> list[str]:
    return [flaw["phrase"] or flaw["kind"] for flaw in about["flaws"]]


def _end(curve: Sequence[Sequence[float]]) -> float:
    return statistics.fmean(curve[1][-_TAIL:]) if len(curve[1]) > _TAIL else curve[1][-1]


def _shown(cell: Sequence[float] | None) -> str:
    return "" if cell is None else f"{cell[0]:.3f} +- {cell[1]:.3f}"
