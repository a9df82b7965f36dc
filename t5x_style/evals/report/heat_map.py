"""Heat maps as inline SVG: a number in each cell, written out as well as shaded."""

from collections.abc import Mapping, Sequence

from t5x_style.evals.report.markup import Html, tag

_CELL_WIDTH, _CELL_HEIGHT = 52.0, 24.0
_LEFT, _TOP, _BOTTOM = 62.0, 22.0, 40.0
_LARGEST = 1.2  # pixels of the screen for each unit, so that small maps stay small
_DARKEST = 0.6  # opacity, light enough for the figure on it


def heat_map(
    values: Mapping[tuple[int, int], float],
    columns: Sequence[str],
    rows: Sequence[str],
    *,
    column_label: str,
    row_label: str,
    description: str,
    darkest_at: float = 100.0,
    rule_before: int | None = None,
    rule_label: str = "",
) -> Html:
    """Returns a drawing of a value, 0 or above, for each column and row.

    Args:
      values: (column, row) to value; a cell that is not there stays empty.
      columns, rows: their names, from the left and from the top.
      column_label, row_label: what the names are, with units.
      description: for those who cannot see it.
      darkest_at: the value of the darkest cells.
      rule_before: number of the column before which a line is drawn; None for no line.
      rule_label: what the line means.
    """
    width = _LEFT + len(columns) * _CELL_WIDTH + 8
    height = _TOP + len(rows) * _CELL_HEIGHT + _BOTTOM
    bottom = height - _BOTTOM
    middle = _LEFT + len(columns) * _CELL_WIDTH / 2
    parts = [tag("text", row_label, x=0.0, y=_TOP - 8, class_="note-label")]
    for y, name in enumerate(rows):
        at = _TOP + (y + 0.5) * _CELL_HEIGHT + 4
        parts.append(tag("text", name, x=_LEFT - 8, y=at, class_="end"))
    for x, name in enumerate(columns):
        at = _LEFT + (x + 0.5) * _CELL_WIDTH
        parts.append(tag("text", name, x=at, y=bottom + 16, class_="middle"))
    parts.append(tag("text", column_label, x=middle, y=height - 6, class_="middle note-label"))
    for (x, y), value in sorted(values.items()):
        left, top = _LEFT + x * _CELL_WIDTH, _TOP + y * _CELL_HEIGHT
        parts.append(
            tag(
                "rect",
                tag("title", f"{columns[x]}, {rows[y]}: {value:.0f}"),
                x=left,
                y=top,
                width=_CELL_WIDTH - 2,
                height=_CELL_HEIGHT - 2,
                fill_opacity=_DARKEST * min(value / darkest_at, 1.0) if darkest_at else 0.0,
                class_="cell tone0",
            )
        )
        place = {"x": left + _CELL_WIDTH / 2 - 1, "y": top + _CELL_HEIGHT / 2 + 3}
        parts.append(tag("text", f"{value:.0f}", **place, class_="middle label"))
    if rule_before is not None:
        at = _LEFT + rule_before * _CELL_WIDTH - 1
        parts.append(tag("line", x1=at, x2=at, y1=_TOP - 4, y2=bottom, class_="rule"))
        parts.append(tag("text", rule_label, x=at, y=_TOP - 8, class_="middle note-label"))
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=description,
        class_="chart",
        style=f"max-width: {_LARGEST * width:.0f}px",
    )
