"""Sections about the stages of a corpus: what each keeps, and what its texts are like."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_style.evals.report.inputs import Inputs
from t5x_style.evals.report.markup import (
    Html,
    bar,
    details,
    figure,
    join,
    note,
    number,
    share,
    size,
    table,
    tag,
)
from t5x_style.evals.report.page import Section
from t5x_style.evals.report.plots import Axis, Rule, Series, chart, legend

_FILE = "statistics.json"
_SMALL_WIDTH, _SMALL_HEIGHT = 380.0, 210.0
_TONES = 5
_MOST_BINS = 40
_LEFT_OUT = 0.1  # per cent of the documents of a stage, at each side

_Stages = Sequence[Mapping[str, Any]]


def _retention(inputs: Inputs) -> Html:
    parts: list[Html] = []
    for found in inputs.json("statistics", _FILE).values():
        if found["retention"][0]["documents"] is None:
            parts.append(note("The stages left no funnel."))
            continue
        rows = [
            (
                row["title"],
                number(row["documents"]),
                _share_bar(row["kept"], 0),
                _share_bar(row["published_kept"], 4),
                _share(row["removed"]),
                _share(row["published_removed"]),
            )
            for row in found["retention"]
        ]
        columns = ("Stage", "Documents", "Kept of all pages", "Paper", "Removed", "Paper")
        caption = (
            "Documents after each stage as a share of the pages that the first was given, and what "
            "the stage took out of what it was given; beside them those of "
            f"{found['published']['source']}, of 130 billion pages of more than 90 crawls."
        )
        parts.append(table(columns, rows, caption=caption))
        parts.append(_masked(found["stages"]))
        parts.append(_years(found["stages"][-1], found["published"]["documents_by_year"]))
    return join(parts)


def _share(value: float | None) -> str:
    return "–" if value is None else share(value, 1.0)


def _share_bar(value: float | None, tone: int) -> Html | str:
    return "–" if value is None else bar(value, 1.0, _share(value), tone)


def _masked(stages: _Stages) -> Html:
    masked = {kind: num for stage in stages for kind, num in stage["masked"].items()}
    if not masked:
        return Html("")
    rows = [(kind, number(num)) for kind, num in sorted(masked.items())]
    return table(("Kind", "Masked"), rows, caption="Personal data that were masked in the text.")


def _years(stage: Mapping[str, Any], published: Mapping[str, float]) -> Html:
    rows = [
        (
            year,
            number(counts["documents"]),
            size(counts["bytes"]),
            share(counts["documents"], stage["documents"]),
            _share(published.get(year)),
        )
        for year, counts in stage["years"].items()
    ]
    columns = ("Year of the crawl", "Documents", "Bytes", "Of documents", "Paper")
    caption = f"Documents after {stage['title']}, by year, and the paper's share."
    return details("Documents by year", table(columns, rows, caption=caption))


def _statistics(inputs: Inputs) -> Html:
    parts: list[Html] = []
    for found in inputs.json("statistics", _FILE).values():
        measures, stages = found["measures"], found["stages"]
        nine = {name: m for name, m in measures.items() if m["is_published"]}
        others = {name: m for name, m in measures.items() if not m["is_published"]}
        explanation = tag(
            "p",
            "The nine measures that the paper shows of its texts, by stage. Each histogram is of "
            "the documents of a stage, in per cent of them, without the outermost thousandths; a "
            "dotted line is where the paper's own has its peak, as read from its figure.",
        )
        modes = found["published"]["modes"]
        known = [name for name in nine if any(name in stage["measures"] for stage in stages)]
        drawn = [_histogram(nine[name], name, stages, modes.get(name)) for name in known]
        parts += [
            explanation,
            legend(_series(stages, "content_length", measures["content_length"])),
            tag("div", *drawn, class_="pair"),
            *(
                note(f"{nine[name]['title']} was not measured.")
                for name in nine
                if name not in known
            ),
            _table(nine, stages),
            details(f"{len(others)} more measures", _table(others, stages)),
        ]
    return join(parts)


def _series(stages: _Stages, name: str, measure: Mapping[str, Any]) -> list[Series]:
    """Returns a histogram for each stage that has the measure, all with the same bins."""
    edges = np.array(measure["edges"])
    titles, heights = [], []
    for tone, stage in enumerate(stages):
        if sketch := stage["measures"].get(name):
            titles.append((stage["title"], tone % _TONES))
            counts = np.zeros(len(edges) - 1)
            held = sketch["histogram"]
            counts[held["first"] : held["first"] + len(held["counts"])] = held["counts"]
            heights.append(100 * counts / sketch["count"])
    if not titles:
        return []
    x, ys = _drawable(edges, np.array(heights), measure["is_log"])
    return [Series(title, x, y, tone, "steps") for (title, tone), y in zip(titles, ys, strict=True)]


def _drawable(
    edges: np.ndarray, heights: np.ndarray, is_log: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns edges [B + 1] and heights [S, B], in per cent, of bins that can be drawn.

    A bin of nothing but 0 is too narrow, or lies at no place of a log axis: it joins the next.
    Bins are joined to a few dozen, and those of the outermost documents left out.
    """
    if is_log or edges[1] - edges[0] < 0.01 * (edges[2] - edges[1]):
        edges = np.concatenate([[edges[1] if is_log else edges[0]], edges[2:]])
        heights = np.concatenate([heights[:, :1] + heights[:, 1:2], heights[:, 2:]], axis=1)
    below = np.cumsum(heights, axis=1)
    is_drawn = (below > _LEFT_OUT) & (below - heights < 100 - _LEFT_OUT)
    drawn = np.flatnonzero(is_drawn.any(axis=0))
    first, stop = int(drawn[0]), int(drawn[-1]) + 1
    starts = np.arange(first, stop, -((first - stop) // _MOST_BINS))
    heights = np.add.reduceat(heights[:, :stop], starts, axis=1)
    return np.append(edges[starts], edges[stop]), heights


def _histogram(
    measure: Mapping[str, Any],
    name: str,
    stages: _Stages,
    mode: float | None,
) -> Html:
    scale = "log10" if measure["is_log"] else "linear"
    drawing = chart(
        _series(stages, name, measure),
        x=Axis(measure["meaning"], scale),
        y=Axis("% of documents", low=0.0),
        description=f"Histogram of {measure['title'].lower()} by stage; figures in the table.",
        rules=[Rule(mode, "paper")] if mode is not None else [],
        height=_SMALL_HEIGHT,
        width=_SMALL_WIDTH,
    )
    return figure(drawing, tag("strong", measure["title"]))


def _table(measures: Mapping[str, Any], stages: _Stages) -> Html:
    rows = []
    for name, measure in measures.items():
        sketches = [stage["measures"].get(name) for stage in stages]
        if any(sketches):
            heading = join(
                [measure["title"], tag("small", f" {measure['meaning']}", class_="soft")]
            )
            rows.append((heading, *map(_mean_and_median, sketches)))
    columns = ("Measure", *(stage["title"] for stage in stages))
    caption = "Mean and, below it, median of each measure by stage; medians to within a bin."
    return table(columns, rows, caption=caption)


def _mean_and_median(sketch: Mapping[str, Any] | None) -> Html | str:
    if sketch is None:
        return "–"
    mean, median = _figures(sketch["mean"]), _figures(sketch["quantiles"]["0.5"])
    return join([mean, tag("br"), tag("span", median, class_="soft")])


def _figures(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


SECTIONS = (
    Section(
        "retention",
        "What each stage keeps",
        ("statistics",),
        _retention,
        is_shown=lambda inputs: inputs.is_given("statistics"),
    ),
    Section(
        "statistics",
        "Statistics of the texts",
        ("statistics",),
        _statistics,
        is_shown=lambda inputs: inputs.is_given("statistics"),
    ),
)
