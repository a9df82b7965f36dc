"""The section about reward models: accuracy by domain, where scores lie, and calibration."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_style.evals.preferences import MEASURES
from t5x_style.evals.report.inputs import Inputs
from t5x_style.evals.report.markup import Html, figure, join, note, number, table, tag
from t5x_style.evals.report.page import Section
from t5x_style.evals.report.plots import Axis, Series, chart, legend

_TITLES = {"with_prompts": "With the domain's prompt", "without_prompts": "Without"}


def _reward(inputs: Inputs) -> Html:
    parts: list[Html] = []
    found = inputs.json("reward", MEASURES)
    for label, measures in found.items():
        if len(found) > 1:
            parts.append(tag("h3", label))
        # The way in which the model was trained stands first.
        scored = {name: of for name, of in measures["scored"].items() if of is not None}
        parts.append(
            tag(
                "p",
                f"Scores of {number(measures['num_responses'])} responses to "
                f"{number(measures['num_prompts'])} prompts that were not trained on. A "
                "comparison is right where the better response has the higher score; a tie is "
                f"half right. {_left_out(measures['dropped'])}",
            )
        )
        parts += [_accuracies(scored), _histogram(scored), _calibration(scored)]
    return join(parts) if parts else note("There are no measures of a reward model yet.")


def _left_out(dropped: Mapping[str, Mapping[str, int]]) -> str:
    shown = [
        f"{number(count)} {reason.replace('_', ' ')} ({part.replace('_', ' ')})"
        for part, reasons in dropped.items()
        for reason, count in reasons.items()
        if count
    ]
    return f"Left out: {', '.join(shown)}." if shown else "Nothing was left out."


def _accuracies(scored: Mapping[str, Mapping[str, Any]]) -> Html:
    first = next(iter(scored.values()))
    headings = ("Domain", "Comparisons")
    for name in scored:
        headings += (_TITLES[name], "Margin", "Loss")
    cells = []
    for domain in [*first["by_domain"], None]:
        rows = [of if domain is None else of["by_domain"][domain] for of in scored.values()]
        row: tuple[Any, ...] = (domain or "All", number(rows[0]["num_pairs"]))
        for of in rows:
            accuracy = tag("strong", f"{100 * of['accuracy']:.1f}%")
            row += (accuracy, number(of["margin"], 2), number(of["ranking_loss"]))
        cells.append(row)
    caption = (
        "Accuracy on comparisons; margin is the mean of the better response's score less the "
        "other's, loss the plain ranking loss in nats (0.693 for a guess)."
    )
    return table(headings, cells, caption=caption)


def _histogram(scored: Mapping[str, Mapping[str, Any]]) -> Html:
    name, of = next(iter(scored.items()))
    edges = of["histogram"]["edges"]
    series = [
        Series(title, edges, of["histogram"][key], tone, "steps")
        for tone, (key, title) in enumerate((("best", "best of a prompt"), ("others", "others")))
    ]
    caption = (
        f"Scores, {_TITLES[name].lower()}: mean {of['score_mean']:.2f}, standard deviation "
        f"{of['score_deviation']:.2f}; {100 * of['near_bound']:.1f}% are close to the bounds of "
        "the barrier or beyond."
    )
    drawing = chart(series, x=Axis("score"), y=Axis("responses", low=0.0), description=caption)
    return figure(drawing, caption, legend(series))


def _calibration(scored: Mapping[str, Mapping[str, Any]]) -> Html:
    series = [Series("as often as said", [0.5, 1.0], [0.5, 1.0], 0, "thin")]
    errors = []
    for tone, (name, of) in enumerate(scored.items(), start=1):
        bins = of["calibration"]["bins"]
        predicted = np.array([row["predicted"] for row in bins])
        # Few comparisons tell little: one standard error to each side.
        frequency = np.array([row["frequency"] for row in bins])
        counts = np.array([row["num_pairs"] for row in bins])
        error = np.sqrt(frequency * (1 - frequency) / counts)
        series.append(
            Series(
                _TITLES[name],
                predicted,
                frequency,
                tone,
                "marks",
                low=np.maximum(frequency - error, 0),
                high=np.minimum(frequency + error, 1),
            )
        )
        errors.append(f"{of['calibration']['expected_error']:.3f} {_TITLES[name].lower()}")
    caption = (
        "How often a comparison is right, by the probability that the difference of scores stands "
        f"for. Expected calibration error: {', '.join(errors)}. Bands are one standard error to "
        "each side."
    )
    drawing = chart(
        series,
        x=Axis("probability said", low=0.5, high=1.0),
        y=Axis("frequency"),
        description=caption,
    )
    return figure(drawing, caption, legend(series))


SECTIONS = (
    Section(
        "reward",
        "The reward model",
        ("reward",),
        _reward,
        is_shown=lambda inputs: inputs.is_given("reward"),
    ),
)
