"""Charts as inline SVG: lines over steps or positions, and histograms.

The drawings take their colours from the page's style sheet (light, dark and print), hold no
scripts and no random ids, and are the same bytes for the same data. They draw what they are given:
smoothing, and saying so, is the caller's part. The marks differ in shape and dash as well as in
colour.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from t5x_style.evals.report.markup import Html, join, tag

_WIDTH = 720.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 24.0, 44.0, 40.0
_LABEL_ROWS = (_TOP - 6, _TOP - 20)  # of bands and rules, above the plot
_CHARACTER_WIDTH = 6.4  # of a label, on the generous side
_TICK_WIDTH = 60.0  # of the label of a tick, and room
_MAX_POINTS = 1500  # above this a line keeps the extremes of each pixel column only
_FIT = {"linear": lambda v: v, "log2": np.log2, "log10": np.log10}
_MARKERS = ("circle", "square", "diamond", "triangle")

Scale = Literal["linear", "log2", "log10"]


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis: its label with the unit, its scale, and its ends where the data do not set them."""

    label: str
    scale: Scale = "linear"
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: x and y of equal length; `low` and `high` bound a shaded band around y.

    The style is "line", "thin" (raw values behind a smoothed line), "marks" (a line with a mark
    and a tooltip at each point) or "steps" (y holds one value fewer than x, the edges).
    """

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    tone: int = 0
    style: Literal["line", "thin", "marks", "steps"] = "line"
    low: Sequence[float] | np.ndarray | None = None
    high: Sequence[float] | np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Band:
    """A labelled stretch of the x axis, drawn behind the lines."""

    start: float
    stop: float
    label: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """A labelled vertical line at one place of the x axis."""

    x: float
    label: str


def tick_label(value: float, *, scientific: bool = False) -> str:
    """Returns the text of a value on an axis: 0, 0.25, 1,500, 16,384, 64k, 2M, 3e-4."""
    if value == 0:
        return "0"
    sign, size = "−" if value < 0 else "", abs(value)
    if scientific:
        mantissa, exponent = f"{size:.3e}".split("e")
        return f"{sign}{float(mantissa):g}e{int(exponent)}"
    for divisor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= max(divisor, 10_000) and size * 10 % divisor == 0:
            return f"{sign}{size / divisor:g}{suffix}"
    if size >= 1e9:
        return f"{sign}{size:.3g}"
    return f"{sign}{size:,.0f}" if size >= 1000 else f"{sign}{size:.6g}"


def tick_labels(values: Sequence[float]) -> list[str]:
    """Returns the texts of an axis, all scientific if any value is below a thousandth."""
    scientific = any(0 < abs(value) < 1e-3 for value in values)
    return [tick_label(value, scientific=scientific) for value in values]


def linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns round values (1, 2, 2.5 or 5 times a power of ten apart) within [low, high]."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(math.log(s / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float, scale: Scale, most: int = 10) -> list[float]:
    """Returns powers of 2 or of 10 within [low, high]; 1, 2 and 5 times where decades are few."""
    base = 2 if scale == "log2" else 10
    first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
    stride = max(1, math.ceil((last - first) / most))
    times = (1, 2, 5) if base == 10 and last - first <= most // 3 else (1,)
    ticks = [m * float(base) ** e for e in range(first, last + 1, stride) for m in times]
    return [t for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]


@dataclasses.dataclass(frozen=True)
class _Mapping:
    """An axis that has found its ends: maps values to SVG units and knows its ticks."""

    scale: Scale
    low: float
    high: float
    start: float
    stop: float

    def __call__(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        fit: Callable[..., np.ndarray] = _FIT[self.scale]
        low, high = fit(self.low), fit(self.high)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (fit(np.asarray(values, np.float64)) - low) / (high - low)
        return self.start + share * (self.stop - self.start)

    def one(self, value: float) -> float:
        return float(self([value])[0])

    def ticks(self, most: int = 10) -> list[float]:
        if self.scale == "linear":
            return linear_ticks(self.low, self.high)
        return log_ticks(self.low, self.high, self.scale, most)


def _resolve(
    axis: Axis, values: Sequence[np.ndarray], start: float, stop: float, pad: float
) -> _Mapping:
    """Finds an axis's ends from the finite data, with a share `pad` of room on free ends."""
    everything = np.concatenate([np.asarray(v, np.float64).ravel() for v in values])
    good = everything[np.isfinite(everything)]
    if axis.scale != "linear":
        good = good[good > 0]
    fit = _FIT[axis.scale]
    low = float(fit(axis.low if axis.low is not None else good.min() if good.size else 1.0))
    high = float(fit(axis.high if axis.high is not None else good.max() if good.size else 1.0))
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    room = pad * (high - low)
    low -= room if axis.low is None else 0.0
    high += room if axis.high is None else 0.0
    if axis.scale == "linear":
        return _Mapping(axis.scale, low, high, start, stop)
    base = 2.0 if axis.scale == "log2" else 10.0
    return _Mapping(axis.scale, base**low, base**high, start, stop)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keeps the lowest and highest point of each of many x columns, so that spikes survive."""
    if len(x) <= _MAX_POINTS:
        return x, y
    columns = np.array_split(np.arange(len(x)), _MAX_POINTS // 2)
    keep: set[int] = {0, len(x) - 1}
    for column in columns:
        finite = column[np.isfinite(y[column])]
        if finite.size:
            keep |= {int(finite[np.argmin(y[finite])]), int(finite[np.argmax(y[finite])])}
        if finite.size < column.size:
            keep.add(int(column[~np.isfinite(y[column])][0]))
    order = np.array(sorted(keep))
    return x[order], y[order]


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """Returns path data through the finite points, broken where a point is not finite."""
    pieces, pen = [], "M"
    for px, py in zip(x, y, strict=True):
        if not (math.isfinite(px) and math.isfinite(py)):
            pen = "M"
            continue
        pieces.append(f"{pen}{px:.1f},{py:.1f}")
        pen = "L"
    return "".join(pieces)


def _mark(shape: str, x: float, y: float, tone: int, label: str) -> Html:
    title = tag("title", label)
    if shape == "circle":
        return tag("circle", title, cx=x, cy=y, r=3.6, class_=f"mark tone{tone}")
    outlines = {
        "square": [(-3.3, -3.3), (3.3, -3.3), (3.3, 3.3), (-3.3, 3.3)],
        "diamond": [(0.0, -4.8), (4.8, 0.0), (0.0, 4.8), (-4.8, 0.0)],
        "triangle": [(0.0, -4.6), (4.4, 3.4), (-4.4, 3.4)],
    }
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in outlines[shape])
    return tag("polygon", title, points=points, class_=f"mark tone{tone}")


def _draw(series: Series, x_map: _Mapping, y_map: _Mapping) -> Html:
    parts: list[Html] = []
    tone = f"tone{series.tone}"
    if series.style == "steps":
        edges, tops = x_map(series.x), y_map(series.y)
        x = np.repeat(edges, 2)
        y = np.concatenate([[y_map.start], np.repeat(tops, 2), [y_map.start]])
        outline = _path(x, y)
        return join(
            [
                tag("path", d=f"{outline}Z", class_=f"area {tone}"),
                tag("path", d=outline, class_=f"line {tone}"),
            ]
        )
    x, y = _thinned(np.asarray(series.x, np.float64), np.asarray(series.y, np.float64))
    if series.low is not None and series.high is not None:
        good = np.isfinite(np.asarray(series.low)) & np.isfinite(np.asarray(series.high))
        ends = x_map(np.asarray(series.x)[good])
        low, high = y_map(np.asarray(series.low)[good]), y_map(np.asarray(series.high)[good])
        around = _path(np.concatenate([ends, ends[::-1]]), np.concatenate([high, low[::-1]]))
        if around:
            parts.append(tag("path", d=f"{around}Z", class_=f"area {tone}"))
    px, py = x_map(x), y_map(y)
    parts.append(
        tag(
            "path",
            d=_path(px, py),
            class_=f"{'thin' if series.style == 'thin' else 'line'} {tone}",
        )
    )
    if series.style == "marks":
        shape = _MARKERS[series.tone % len(_MARKERS)]
        for i in range(len(x)):
            if math.isfinite(px[i]) and math.isfinite(py[i]):
                label = f"{series.label}: {y[i]:.4g} at {tick_label(float(x[i]))}"
                parts.append(_mark(shape, float(px[i]), float(py[i]), series.tone, label))
    return join(parts)


def _frame(x_axis: Axis, y_axis: Axis, x_map: _Mapping, y_map: _Mapping) -> Html:
    right, bottom = x_map.stop, y_map.start
    parts: list[Html] = []
    y_ticks, x_ticks = y_map.ticks(), x_map.ticks(int((right - _LEFT) / _TICK_WIDTH))
    for value, words in zip(y_ticks, tick_labels(y_ticks), strict=True):
        at = y_map.one(value)
        style = "axis" if value == 0 else "grid"
        parts.append(tag("line", x1=_LEFT, x2=right, y1=at, y2=at, class_=style))
        parts.append(tag("text", words, x=_LEFT - 8, y=at + 4, class_="tick end"))
    for value, words in zip(x_ticks, tick_labels(x_ticks), strict=True):
        at = x_map.one(value)
        parts.append(tag("line", x1=at, x2=at, y1=bottom, y2=bottom + 5, class_="axis"))
        parts.append(tag("text", words, x=at, y=bottom + 18, class_="tick middle"))
    parts.append(tag("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    middle = (_LEFT + right) / 2
    parts.append(tag("text", x_axis.label, x=middle, y=bottom + 35, class_="label middle"))
    parts.append(tag("text", y_axis.label, x=4, y=12, class_="label"))
    return join(parts)


def _labels(places: Sequence[tuple[float, str, str]], full_width: float) -> Html:
    """Sets labels above the plot, each where there is room beside those before it.

    Args:
      places: (x, anchor "start" or "middle", text) in order; one that fits in no row is left out,
        as captions and tooltips say the same.
      full_width: of the drawing.
    """
    parts: list[Html] = []
    ends = [0.0] * len(_LABEL_ROWS)
    for x, anchor, text in places:
        width = _CHARACTER_WIDTH * len(text)
        left = x if anchor == "start" else x - width / 2
        left = min(left, full_width - width)
        for row, y in enumerate(_LABEL_ROWS):
            if left >= ends[row]:
                ends[row] = left + width + 6
                # Anchored at the side that must not move, whatever the true width of the text.
                at_right = left + width > full_width - 1
                at = left if anchor == "start" else left + width / 2
                place = full_width - 1 if at_right else at
                side = "end" if at_right else anchor
                parts.append(tag("text", text, x=place, y=y, class_=f"note-label {side}"))
                break
    return join(parts)


def chart(
    series: Sequence[Series],
    *,
    x: Axis,
    y: Axis,
    description: str,
    bands: Sequence[Band] = (),
    rules: Sequence[Rule] = (),
    height: float = 260.0,
    width: float = _WIDTH,
) -> Html:
    """Returns a chart as an `<svg>` element.

    Args:
      series: what to draw, the first at the back.
      x, y: the axes; free ends follow the finite data.
      description: what a reader who cannot see the drawing should know.
      bands: stretches of the x axis, each shaded in turn and labelled at the top.
      rules: labelled vertical lines.
      height, width: of the drawing, in SVG units.
    """
    right, bottom = width - _RIGHT, height - _BOTTOM
    xs = [np.asarray(s.x) for s in series] or [np.zeros(1)]
    ys = [np.asarray(s.y) for s in series] or [np.zeros(1)]
    ys += [np.asarray(v) for s in series for v in (s.low, s.high) if v is not None]
    x_map = _resolve(x, xs, _LEFT, right, pad=0.0)
    y_map = _resolve(y, ys, bottom, _TOP, pad=0.05)
    parts: list[Html] = []
    places: list[tuple[float, str, str]] = []
    for i, band in enumerate(bands):
        ends = np.clip(x_map([band.start, band.stop]), _LEFT, right)
        band_width = float(ends[1] - ends[0])
        shade = f"band band{i % 2}"
        parts.append(
            tag(
                "rect",
                tag("title", band.label),
                x=float(ends[0]),
                y=_TOP,
                width=band_width,
                height=bottom - _TOP,
                class_=shade,
            )
        )
        places.append((float(ends[0]), "start", band.label))
    parts.append(_frame(x, y, x_map, y_map))
    for rule in rules:
        at = x_map.one(rule.x)
        if _LEFT <= at <= right + 0.01:
            parts.append(tag("line", x1=at, x2=at, y1=_TOP, y2=bottom, class_="rule"))
            places.append((at, "middle", rule.label))
    parts.append(_labels(sorted(places), width))
    parts.extend(_draw(s, x_map, y_map) for s in series)
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=description,
        class_="chart",
    )


def legend(series: Sequence[Series]) -> Html:
    """Returns the key to a chart's lines, one entry for each label."""
    entries, seen = [], set()
    for s in series:
        if s.label in seen:
            continue
        seen.add(s.label)
        line = tag("line", x1=0, x2=26, y1=6, y2=6, class_=f"{_key_class(s)} tone{s.tone}")
        shape = _MARKERS[s.tone % len(_MARKERS)]
        dot = _mark(shape, 13.0, 6.0, s.tone, s.label) if s.style == "marks" else ""
        swatch = tag("svg", line, dot, viewBox="0 0 26 12", class_="swatch", aria_hidden="true")
        entries.append(tag("li", swatch, tag("span", s.label)))
    return tag("ul", *entries, class_="legend")


def _key_class(series: Series) -> str:
    return "thin" if series.style == "thin" else "line"
