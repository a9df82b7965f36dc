"""HTML that is safe by construction: plain strings are escaped wherever they are placed.

A page shows text from the open web and from models, so nothing here trusts a string: only `Html`,
which the functions of this file make, passes unescaped. Charts are in plots.py, the page's frame
and style in page.py.
"""

import html
import re
from collections.abc import Iterable, Sequence

# Characters HTML cannot carry (C0 and C1 controls, lone surrogates) and those that reorder the
# text around them (bidirectional embeddings, overrides and isolates).
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0d\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069]")
_VOID = frozenset({"br", "meta", "hr"})


class Html(str):
    """Markup that is already safe to place in a page."""

    __slots__ = ()


def escape(value: object) -> Html:
    """Returns a value as safe markup: `Html` as it is, anything else as escaped text."""
    if isinstance(value, Html):
        return value
    text = _UNPRINTABLE.sub("\ufffd", str(value).replace("\r\n", "\n"))
    return Html(html.escape(_REORDERING.sub("\ufffd", text), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """Returns the parts, each escaped unless it is `Html`, one after the other."""
    return Html(escape(separator).join(escape(part) for part in parts))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Returns an element; `class_` means class, other underscores become hyphens.

    Args:
      name: name of the element, trusted.
      children: contents, escaped unless they are `Html`.
      attributes: values are escaped; None leaves the attribute out, floats get two decimals.
    """
    pieces = [name]
    for key, value in attributes.items():
        if value is None:
            continue
        shown = f"{value:.2f}" if isinstance(value, float) else value
        pieces.append(f'{key.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    opening = f"<{' '.join(pieces)}>"
    if name in _VOID:
        return Html(opening)
    return Html(f"{opening}{join(children)}</{name}>")


def number(value: float | int | None, digits: int = 3) -> str:
    """Returns a count with thousands separated, or a float with `digits` decimals."""
    if value is None:
        return "–"
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.{digits}f}"


def size(num_bytes: float) -> str:
    """Returns a number of bytes in decimal units with three figures: `1.25 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(num_bytes) < 999.5 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.3g} {unit}"


def duration(secs: float) -> str:
    """Returns a wall time as people say it: `0.42 s`, `31.0 s`, `4 min 05 s`, `2 h 03 min`."""
    if secs < 10:
        return f"{secs:.2f} s"
    if secs < 59.95:
        return f"{secs:.1f} s"
    minutes, rest = divmod(round(secs), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def share(part: float, whole: float) -> str:
    """Returns part / whole in per cent, or a dash where the whole is 0."""
    if not whole:
        return "–"
    return "<0.1%" if 0 < part < 0.0005 * whole else f"{100 * part / whole:.1f}%"


def bar(value: float, most: float, label: str, tone: int = 0) -> Html:
    """Returns a horizontal bar of length value / most with its label, for a cell of a table."""
    width = 100 * max(0.0, min(1.0, value / most)) if most else 0.0
    fill = tag("span", class_=f"fill tone{tone}", style=f"width:{width:.2f}%")
    track = tag("span", fill, class_="track", aria_hidden="true")
    return tag("span", track, tag("span", label, class_="barlabel"), class_="bar")


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    caption: str,
    text_columns: int = 1,
) -> Html:
    """Returns a table that scrolls sideways where the page is too narrow for it.

    Args:
      columns: headings.
      rows: cells; the first of each row is its heading.
      caption: what the table shows, with units.
      text_columns: how many columns from the left hold text (the others are aligned right).
    """
    head = [
        tag("th", name, scope="col", class_=None if i < text_columns else "num")
        for i, name in enumerate(columns)
    ]
    body = []
    for row in rows:
        cells = [tag("th", row[0], scope="row")]
        for i, cell in enumerate(row[1:], start=1):
            cells.append(tag("td", cell, class_=None if i < text_columns else "num"))
        body.append(tag("tr", *cells))
    inner = tag(
        "table",
        tag("caption", tag("span", caption)),
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
    )
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption)


def details(summary: object, *children: object) -> Html:
    """Returns a collapsed part that opens on a click, without scripts."""
    return tag("details", tag("summary", summary), *children)


def note(*children: object) -> Html:
    """Returns a remark that stands out from the text around it."""
    return tag("p", *children, class_="note")


def figure(drawing: Html, caption: object, legend: Html | None = None) -> Html:
    """Returns a drawing with its legend above it and its caption below."""
    return tag(
        "figure",
        legend or "",
        tag("div", drawing, class_="scroll plot"),
        tag("figcaption", caption),
    )
