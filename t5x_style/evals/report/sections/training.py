"""Sections about training: the phases, their loss, learning rate and throughput by step."""

import dataclasses
from typing import Any

import numpy as np

from t5x_style.evals.report.inputs import Inputs, Metrics, read_json, read_metrics
from t5x_style.evals.report.markup import (
    Html,
    bar,
    duration,
    figure,
    join,
    note,
    number,
    share,
    table,
    tag,
)
from t5x_style.evals.report.page import Section
from t5x_style.evals.report.plots import Axis, Band, Series, chart, legend
from t5x_style.evals.report.sections.corpus import context_lengths, token_stores

_NUM_SMOOTHED = 40  # about as many independent points as the smoothed line keeps


@dataclasses.dataclass(frozen=True)
class Phase:
    """One training run, at its place on the global step axis.

    Attributes:
      label: name of the phase.
      metrics: what the run logged, at its own steps.
      offset_steps: added to the run's own steps to give global ones.
      start_step, stop_step: first and last global step.
    """

    label: str
    metrics: Metrics
    offset_steps: int
    start_step: int
    stop_step: int

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns (global steps, values) of a metric."""
        steps, values = self.metrics.column(name)
        return steps + self.offset_steps, values


def phases(inputs: Inputs) -> list[Phase]:
    """Returns the runs in order, one after the other on the step axis.

    A run that continues another counts its steps on; one that starts at step 0 with the weights of
    another is moved to where that one ended.
    """
    found: list[Phase] = []
    for label, path in inputs.files("runs", "metrics.jsonl").items():
        metrics = read_metrics(path)
        if not metrics.steps.size:
            continue
        first, last = int(metrics.steps[0]), int(metrics.steps[-1])
        offset = 0
        if found:
            before = found[-1]
            continues = first >= before.stop_step - before.offset_steps
            offset = before.offset_steps if continues else before.stop_step - first
        found.append(Phase(label, metrics, offset, first + offset, last + offset))
    return found


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the centred running mean over an odd window, cut short at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    start = np.maximum(at - window // 2, 0)
    stop = np.minimum(at + window // 2 + 1, len(values))
    return (sums[stop] - sums[start]) / (stop - start)


@dataclasses.dataclass(frozen=True)
class _Curve:
    """A metric and how it is drawn."""

    name: str
    label: str
    words: str
    axis: Axis
    height: float
    smoothed: bool = True


_CURVES = (
    _Curve("train/loss", "training loss", "Training loss", Axis("loss (nats per token)"), 310.0),
    _Curve(
        "train/learning_rate",
        "learning rate",
        "Learning rate",
        Axis("learning rate", low=0.0),
        180.0,
        smoothed=False,
    ),
    _Curve(
        "train/grad_norm",
        "norm",
        "Norm of the gradient before clipping",
        Axis("gradient norm (log scale)", "log10"),
        200.0,
    ),
    _Curve(
        "timing/tokens_per_sec",
        "throughput",
        "Throughput without padding",
        Axis("tokens per second", low=0.0),
        210.0,
    ),
)


def _window(num_points: int) -> int:
    """Returns the smoothing window for so many points; 1 means that none is needed."""
    return 1 if num_points <= 2 * _NUM_SMOOTHED else 2 * (num_points // _NUM_SMOOTHED // 2) + 1


def _lines(found: list[Phase], curve: _Curve) -> tuple[list[Series], int]:
    """Returns a metric's line, smoothed within each phase over raw values, and the window."""
    columns = [phase.column(curve.name) for phase in found]
    window = _window(max((len(steps) for steps, _ in columns), default=0))
    if not curve.smoothed:
        window = 1
    raw, smooth = [], []
    for steps, values in columns:
        if not steps.size:
            continue
        raw.append(Series(curve.label, steps, values, 0, "thin" if window > 1 else "line"))
        if window > 1:
            label = f"{curve.label}, running mean of {window} points"
            smooth.append(Series(label, steps, running_mean(values, window), 0))
    return raw + smooth, window


def _evaluations(found: list[Phase]) -> list[Series]:
    names = sorted({n for p in found for n in p.metrics.columns if n.startswith("eval/")})
    series = []
    for name in (n for n in names if n.endswith("/loss")):
        points = [phase.column(name) for phase in found]
        steps = np.concatenate([p[0] for p in points])
        values = np.concatenate([p[1] for p in points])
        label = f"held out ({name.split('/')[1]})"
        series.append(Series(label, steps, values, 1 + len(series) % 3, "marks"))
    return series


def _table(found: list[Phase], inputs: Inputs) -> Html:
    lengths = context_lengths(inputs)
    rows = []
    for phase in found:
        _, loss = phase.column("train/loss")
        _, bits = phase.column("train/bits_per_byte")
        _, speed = phase.column("timing/tokens_per_sec")
        _, mfu = phase.column("timing/mfu")
        _, wait = phase.column("timing/data_wait_fraction")
        _, tokens = phase.column("train/tokens")
        _, secs = phase.column("time_secs")
        rows.append(
            (
                phase.label,
                f"{number(phase.start_step)} to {number(phase.stop_step)}",
                number(lengths.get(phase.label)),
                number(int(tokens[-1])) if tokens.size else "–",
                f"{loss[-1]:.4f}" if loss.size else "–",
                f"{bits[-1]:.4f}" if bits.size else "–",
                number(round(float(np.median(speed)))) if speed.size else "–",
                f"{100 * np.median(mfu):.1f}%" if mfu.size else "–",
                f"{100 * np.median(wait):.1f}%" if wait.size else "–",
                duration(float(secs[-1])) if secs.size else "–",
            )
        )
    columns = (
        "Phase",
        "Steps",
        "Context (tokens)",
        "Tokens seen",
        "Last loss (nats per token)",
        "Last bits per byte",
        "Tokens per second",
        "MFU",
        "Waiting for data",
        "Wall time",
    )
    caption = (
        "Training by phase. Last values are means over the steps of the last logged line, on "
        "training text; rates are medians over the phase's lines."
    )
    return table(columns, rows, caption=caption)


def _training(inputs: Inputs) -> Html:
    found = phases(inputs)
    if not found:
        return note("The runs have logged no metrics yet.")
    bands = [Band(p.start_step, p.stop_step, p.label) for p in found]
    gaps = np.concatenate([np.diff(p.column("train/loss")[0]) for p in found] or [np.zeros(0)])
    every = int(np.median(gaps)) if gaps.size else 1
    x = Axis("global step", low=float(found[0].start_step), high=float(found[-1].stop_step))
    parts = [_table(found, inputs)]
    for curve in _CURVES:
        series, window = _lines(found, curve)
        if not series:
            continue
        if curve.name == "train/loss":
            series += _evaluations(found)
        points = "for each step" if every == 1 else f"for the mean over each {number(every)} steps"
        caption = f"{curve.words} by global step, one point {points}; bands are the phases."
        if window > 1:
            caption += f" Thick: centred running mean over {window} points, within a phase."
        drawing = chart(
            series, x=x, y=curve.axis, description=caption, bands=bands, height=curve.height
        )
        parts.append(
            figure(drawing, caption, legend(series) if len({s.label for s in series}) > 1 else None)
        )
    if unreadable := sum(p.metrics.num_unreadable for p in found):
        parts.append(
            note(
                f"{number(unreadable)} lines of metrics.jsonl could not be read: "
                "a process that is killed while it writes leaves half a line."
            )
        )
    return join(parts)


def _filters(component: dict[str, Any]) -> str:
    low, high = component.get("min_tokens"), component.get("max_tokens")
    if low is None and high is None:
        return "all"
    if high is None:
        return f"at least {number(low)}"
    return f"at most {number(high)}" if low is None else f"{number(low)} to {number(high)}"


def _mixture(inputs: Inputs) -> Html:
    names = {s.content: f"{s.index['task']} / {s.index['split']}" for s in token_stores(inputs)}
    rows = []
    for label, path in inputs.files("runs", "run.json").items():
        stream = read_json(path)["identity"]["data"]
        components = stream["components"]
        total = sum(component["rate"] for component in components)
        for component in components:
            content = component["content"]
            rows.append(
                (
                    label,
                    names.get(content, tag("code", content)),
                    component["order"],
                    _filters(component),
                    bar(component["rate"], total, share(component["rate"], total)),
                )
            )
    if not rows:
        return note("The runs recorded no mixture.")
    return table(
        ("Phase", "Component", "Order", "Documents (tokens)", "Share of tokens"),
        rows,
        caption="What each phase was trained on. Shares are of rows, so of tokens.",
        text_columns=3,
    )


SECTIONS = (
    Section("mixture", "Mixture", ("runs",), _mixture),
    Section("training", "Training", ("runs",), _training),
)
