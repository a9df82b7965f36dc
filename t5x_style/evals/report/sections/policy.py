"""The section about reinforcement learning: curves of a PPO run, and what it says by now."""

from pathlib import Path
from typing import Any

from t5x_style.evals.report.inputs import Inputs, Metrics, read_json_lines, read_metrics
from t5x_style.evals.report.markup import Html, figure, join, note, number, table, tag
from t5x_style.evals.report.page import Section
from t5x_style.evals.report.plots import Axis, Series, chart, legend

_METRICS, _SAMPLES, _GUARDS = "metrics.jsonl", "samples", "guards.jsonl"
_BITS = "bits_per_byte"
# What a chart shows: its title, the label of its axis, and its metrics with their names.
_CHARTS = (
    (
        "Scores of answers",
        "mean of an iteration",
        {"ppo/score": "score", "ppo/quality": "true quality"},
    ),
    ("Distance from the reference", "KL of an answer (nats)", {"ppo/answer_kl": "KL"}),
    ("Entropy of the policy", "nats per token", {"ppo/entropy": "entropy"}),
    ("Length of answers", "words", {"ppo/words": "words"}),
    (
        "Error of the critic",
        "share of the returns' variance",
        {"critic/unexplained_variance": "unexplained"},
    ),
)


def _policies(inputs: Inputs) -> Html:
    parts: list[Html] = []
    found = inputs.files("policies", _METRICS)
    for label, path in found.items():
        if len(found) > 1:
            parts.append(tag("h3", label))
        metrics = read_metrics(path)
        parts += _curves(metrics)
        parts += _stops(path.parent / _GUARDS)
        files = sorted((path.parent / _SAMPLES).glob("*.jsonl"))
        if files:
            parts.append(_conversations(files[-1]))
    return join(parts) if parts else note("No policy has been trained yet.")


def _curves(metrics: Metrics) -> list[Html]:
    bits = {
        name: name.split("/")[1]
        for name in metrics.columns
        if name.startswith("eval/") and name.endswith(_BITS)
    }
    parts = []
    for title, axis, names in (*_CHARTS, ("Held-out text", "bits per byte", bits)):
        series = []
        for name, label in names.items():
            steps, values = metrics.column(name)
            if len(steps):
                series.append(Series(label, steps, values, len(series), "line"))
        if series:
            drawing = chart(series, x=Axis("iteration"), y=Axis(axis), description=title)
            parts.append(figure(drawing, title, legend(series) if len(series) > 1 else None))
    return parts


def _stops(path: Path) -> list[Html]:
    if not path.is_file():
        return []
    rows = [
        (number(line["iteration"]), "; ".join(line["broken"]), line["action"].replace("_", " "))
        for line in read_json_lines(path)
    ]
    caption = "Where bounds on the metrics were broken, and what was done."
    return [table(("Iteration", "Bounds", "Then"), rows, caption=caption, text_columns=3)]


def _conversations(path: Path) -> Html:
    """The best, the middle and the worst answer of each domain, in the last iteration."""
    by_domain: dict[str, list[dict[str, Any]]] = {}
    for line in read_json_lines(path):
        by_domain.setdefault(line["domain"], []).append(line)
    rows = []
    for domain, lines in sorted(by_domain.items()):
        ranked = sorted(lines, key=lambda line: -line["score"])
        for place in sorted({0, len(ranked) // 2, len(ranked) - 1}):
            line = ranked[place]
            asked = line["messages"][-1]["content"]
            rows.append((domain, asked, line["response"], number(line["score"], 2)))
    caption = (
        "Answers sampled in the last iteration: the best, the middle and the worst of each domain "
        "by the reward model's score."
    )
    headings = ("Domain", "Last message", "Answer", "Score")
    return table(headings, rows, caption=caption, text_columns=3)


SECTIONS = (
    Section(
        "policy",
        "Reinforcement learning",
        ("policies",),
        _policies,
        is_shown=lambda inputs: inputs.is_given("policies"),
    ),
)
