"""The section about the needle in a haystack: what each checkpoint finds, by length and depth."""

import math
from collections import defaultdict
from typing import Any

from t5x_style.evals.report.heat_map import heat_map
from t5x_style.evals.report.inputs import Inputs
from t5x_style.evals.report.markup import Html, figure, join, note, number, table, tag
from t5x_style.evals.report.page import Section


def _needles(inputs: Inputs) -> Html:
    checkpoints = [
        row
        for contents in inputs.json("needle", "needle.json").values()
        for row in contents["checkpoints"]
    ]
    if not checkpoints:
        return note("The needle was asked of no checkpoint.")
    explanation = tag(
        "p",
        "A statement is hidden in held-out text, at a depth from 0 (the beginning) to 100, and "
        "asked for at the end. A cell is the share of answers, in per cent, that hold what was "
        "asked for. Every checkpoint gets the same texts, statements and questions.",
    )
    maps = [_heat_map(row) for row in checkpoints]
    windows = sorted({row["trained_length"] for row in checkpoints if row["trained_length"]})
    headings = ("Checkpoint", "Length", "Right answers, %", "Similarity by edits", "Questions")
    rows = [
        (row["name"], number(length), *_means(cells), number(sum(c["num"] for c in cells)))
        for row in checkpoints
        for length, cells in _by_length(row["cells"]).items()
    ]
    caption = (
        "Means over all depths, by length of the prompt in tokens. Similarity is 100 less the "
        "edit distance to the wanted answer, in per cent of the longer of the two."
    )
    return join(
        [
            explanation,
            tag("div", *maps, class_="pair"),
            table(headings, rows, caption=caption),
            _by_distance(checkpoints, windows),
        ]
    )


def _by_distance(checkpoints: list[dict[str, Any]], windows: list[int]) -> Html:
    """Returns what is found within each length that a checkpoint was trained at, and beyond it.

    Length alone does not tell this: at a great depth of a long text the statement lies near the
    question.
    """
    rows = []
    for row in checkpoints:
        for least, most in zip([0, *windows], [*windows, math.inf], strict=True):
            cells = [cell for cell in row["cells"] if least < cell["distance"] <= most]
            if cells:
                label = f"{number(least + 1)} to {number(most)}"
                if most == math.inf:
                    label = f"more than {number(least)}"
                num = sum(cell["num"] for cell in cells)
                lowest = min(cell["keyword"] for cell in cells)
                rows.append((row["name"], label, *_means(cells), f"{lowest:.0f}", number(num)))
    headings = (
        "Checkpoint",
        "Distance",
        "Right answers, %",
        "Similarity by edits",
        "Lowest cell, %",
        "Questions",
    )
    caption = (
        "By distance from the statement to the end of the question, in tokens, divided at the "
        "lengths that the checkpoints were trained at. A cell is one length and depth."
    )
    return table(headings, rows, caption=caption) if windows else join([])


def _by_length(cells: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found = defaultdict(list)
    for cell in cells:
        found[cell["length"]].append(cell)
    return dict(sorted(found.items()))


def _means(cells: list[dict[str, Any]]) -> tuple[str, str]:
    num = sum(cell["num"] for cell in cells)
    keyword, edit = (
        sum(cell[name] * cell["num"] for cell in cells) / num for name in ("keyword", "edit")
    )
    return f"{keyword:.1f}", f"{edit:.1f}"


def _heat_map(row: dict[str, Any]) -> Html:
    lengths = sorted({cell["length"] for cell in row["cells"]})
    depths = sorted({cell["depth"] for cell in row["cells"]})
    values = {
        (lengths.index(cell["length"]), depths.index(cell["depth"])): cell["keyword"]
        for cell in row["cells"]
    }
    trained = row["trained_length"]
    beyond = next((i for i, length in enumerate(lengths) if trained and length > trained), None)
    caption = join(
        [
            tag("strong", row["name"]),
            f", step {number(row['step'])}, RoPE base {row['rope_base']:,.0f}"
            + (f", trained at {number(trained)} tokens." if trained else "."),
        ]
    )
    drawing = heat_map(
        values,
        [number(length) for length in lengths],
        [f"{depth:g}" for depth in depths],
        column_label="length of the prompt, in tokens",
        row_label="depth, %",
        description=f"Share of right answers of {row['name']} by length and depth",
        rule_before=beyond,
        rule_label=f"trained at {number(trained)}" if trained else "",
    )
    return figure(drawing, caption)


SECTIONS = (
    Section(
        "needle",
        "The needle in the haystack",
        ("needle",),
        _needles,
        is_shown=lambda inputs: inputs.is_given("needle"),
    ),
)
