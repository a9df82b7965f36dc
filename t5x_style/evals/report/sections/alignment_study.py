"""The section about a study of alignment: reward models, rounds, flaws, and ablations."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.evals.report.inputs import Inputs
from t5x_style.evals.report.markup import Html, figure, join, note, number, table, tag
from t5x_style.evals.report.page import Section
from t5x_style.evals.report.plots import Axis, Series, chart, legend
from t5x_style.evals.studies import STUDY

# What the study's charts show, and which runs of a seed stand in each.
_STUDY_CHARTS = (
    ("ppo/score", "learned reward", "score", ("round-",)),
    ("ppo/quality", "true quality", "quality, 0 to 1", ("round-",)),
    ("bits_per_byte", "held-out text", "bits per byte", ("round-2", "without_text")),
    (
        "critic/unexplained_variance",
        "error of the critic",
        "share of the returns' variance",
        ("round-2", "critic_from_sft"),
    ),
)
_POLICIES = {"sft": "SFT", "early": "early", "late": "late"}


def _study(inputs: Inputs) -> Html:
    parts: list[Html] = []
    for contents in inputs.json("alignment_study", STUDY).values():
        seeds = contents["num_seeds"]
        parts.append(
            tag(
                "p",
                f"Rounds of RLHF from one SFT model, for each of {number(seeds)} seeds. Figures "
                "are mean and standard deviation over seeds; differences are taken seed by seed. "
                "The judges of the first preferences had a weakness, which round 1 is to find and "
                "round 2 to be free of; true quality is measured by a program, never learnt from.",
            )
        )
        parts += [_accuracy(contents), _rounds(contents), _flaws(contents)]
        for about in _STUDY_CHARTS:
            parts += _chart(contents["curves"], *about)
    return join(parts) if parts else note("The study has no rounds yet.")


def _accuracy(contents: Mapping[str, Any]) -> Html:
    rows = [
        (
            domain,
            *(_cell(row[name], 100) for name in ("conditional", "unconditional", "difference")),
        )
        for domain, row in contents["accuracy"].items()
    ]
    caption = (
        "Accuracy of round 1's reward model on held-out comparisons, per cent, beside one that is "
        "not told the domain."
    )
    headings = ("Domain", "Conditional", "Unconditional", "Difference")
    return table(headings, rows, caption=caption)


def _rounds(contents: Mapping[str, Any]) -> Html:
    columns = [
        (what, policy)
        for what in ("score", "quality", "words")
        for policy in _POLICIES
        if f"{what}_{policy}" in contents["rounds"][0]
    ]
    rows = [
        (str(place), *(_cell(row[f"{what}_{policy}"]) for what, policy in columns))
        for place, row in enumerate(contents["rounds"], start=1)
    ]
    headings = ("Round", *(f"{what.capitalize()}, {_POLICIES[policy]}" for what, policy in columns))
    caption = (
        "Answers to the same held-out prompts: scores of the round's reward model, true quality "
        "from 0 to 1, and words."
    )
    return table(headings, rows, caption=caption)


def _flaws(contents: Mapping[str, Any]) -> Html:
    rows = [
        (str(place), str(seed + 1), ", ".join(flaws) or "none", number(pairs))
        for place, row in enumerate(contents["rounds"], start=1)
        for seed, (flaws, pairs) in enumerate(zip(row["flaws"], row["pairs"], strict=True))
    ]
    caption = "Flaws that the fast path found after each round, and pairs made against them."
    return table(("Round", "Seed", "Flaws", "Pairs"), rows, caption=caption, text_columns=3)


def _chart(
    of_seeds: Sequence[Mapping[str, Any]], curve: str, title: str, axis: str, runs: Sequence[str]
) -> list[Html]:
    series = []
    for run in of_seeds[0]:
        if not run.startswith(tuple(runs)):
            continue
        name = next((name for name in sorted(of_seeds[0][run]) if name.endswith(curve)), None)
        if name is None:
            continue
        steps = of_seeds[0][run][name][0]
        columns = list(zip(*(seed[run][name][1] for seed in of_seeds), strict=True))
        means = [statistics.fmean(values) for values in columns]
        spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in columns]
        low, high = (
            [mean + sign * s for mean, s in zip(means, spread, strict=True)] for sign in (-1, 1)
        )
        label = run.replace("_", " ").replace("-", " ")
        series.append(Series(label, steps, means, len(series), "line", low=low, high=high))
    if not series:
        return []
    caption = f"{title.capitalize()}; bands are one standard deviation over seeds to each side."
    drawing = chart(series, x=Axis("iteration"), y=Axis(axis), description=caption)
    return [figure(drawing, caption, legend(series))]


def _cell(spread: Sequence[float], factor: float = 1) -> str:
    digits = 1 if factor == 100 else 3
    mean, deviation = (factor * value for value in spread)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}".replace("-", "−")


SECTIONS = (
    Section(
        "alignment-study",
        "The study of alignment",
        ("alignment_study",),
        _study,
        is_shown=lambda inputs: inputs.is_given("alignment_study"),
    ),
)
