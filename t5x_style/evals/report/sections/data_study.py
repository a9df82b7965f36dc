"""The section about a study of training data: one table, and how arms drift apart in training."""

from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.evals.data_study import TAILS
from t5x_style.evals.report.inputs import Inputs
from t5x_style.evals.report.markup import Html, figure, join, note, number, size, table, tag
from t5x_style.evals.report.page import Section
from t5x_style.evals.report.plots import Axis, Series, chart, legend
from t5x_style.evals.studies import STUDY, plus_minus


def _study(inputs: Inputs) -> Html:
    parts: list[Html] = []
    for contents in inputs.json("data_study", STUDY).values():
        rows = contents["arms"]
        seeds = max(row["num_seeds"] for row in rows)
        parts.append(
            tag(
                "p",
                f"The same model was trained on each text, for each of {number(seeds)} seeds on "
                f"{number(contents['tokens'])} tokens; a shorter text was read more often. Figures "
                "are mean and standard deviation over seeds; differences are taken seed by seed, "
                "as the models of one seed start from the same weights. Below 0 is better. Of "
                f"{number(seeds)} seeds little can be said of a difference that is not a few times "
                "its deviation, nor do they tell how it would be with other pages.",
            )
        )
        parts.append(_texts(rows))
        for held_out in rows[0]["held_out"]:
            parts += [_bits(held_out, rows), _courses(held_out, rows)]
        if "toxicity" in rows[0]:
            parts.append(_toxicity(rows))
    return join(parts) if parts else note("The study has no arms yet.")


def _texts(rows: Sequence[Mapping[str, Any]]) -> Html:
    headings = ("Text", "Documents", "Size", "Tokens", "Times read", "Shared", "Step, ms")
    cells = [
        (
            row["name"],
            number(row["documents"]),
            size(row["num_bytes"]),
            number(row["tokens"]),
            f"{row['epochs']:.2f}",
            f"{100 * row['shared']:.2f}%",
            f"{1e3 * row['step_secs']:.0f}",
        )
        for row in rows
    ]
    caption = (
        "What was trained on, without held-out pages and copies of them; shared is the part of the "
        "held-out texts' long word n-grams that occur in it all the same. Step times are medians, "
        "on a machine that does other things too."
    )
    return table(headings, cells, caption=caption)


def _bits(held_out: str, rows: Sequence[Mapping[str, Any]]) -> Html:
    first = rows[0]["name"]
    headings = ("Text", "Bits per byte", f"Less {first}", f"Better than {first}", "Less the last")
    cells = []
    for row in rows:
        found = row["held_out"][held_out]
        better = found.get("seeds_better")
        cells.append(
            (
                row["name"],
                tag("strong", plus_minus(found, "bits_per_byte")),
                plus_minus(found, "difference", signed=True),
                "–" if better is None else f"{better} of {row['num_seeds']} seeds",
                plus_minus(found, "step", signed=True),
            )
        )
    caption = (
        f"Bits per byte on {_name(held_out)} after the last step; the last is the text before it "
        "in the pipeline."
    )
    return table(headings, cells, caption=caption)


def _courses(held_out: str, rows: Sequence[Mapping[str, Any]]) -> Html:
    series = []
    for tone, row in enumerate(rows):
        found = row["held_out"][held_out]
        means = [at["bits_per_byte"] for at in found["course"]]
        spread = [at["bits_per_byte_deviation"] or 0.0 for at in found["course"]]
        series.append(
            Series(
                row["name"],
                found["steps"],
                means,
                tone,
                "marks",
                low=[mean - s for mean, s in zip(means, spread, strict=True)],
                high=[mean + s for mean, s in zip(means, spread, strict=True)],
            )
        )
    caption = (
        f"Bits per byte on {_name(held_out)} in training; bands are one standard deviation over "
        "seeds to each side."
    )
    drawing = chart(series, x=Axis("step"), y=Axis("bits per byte"), description=caption)
    return figure(drawing, caption, legend(series))


def _toxicity(rows: Sequence[Mapping[str, Any]]) -> Html:
    headings = ("Text", "Mean score", *(f"{least:g} or more" for least in TAILS.values()))
    cells = [
        (row["name"], *(plus_minus(row, name) for name in ("toxicity", *TAILS))) for row in rows
    ]
    caption = (
        "Toxicity of what the models write from the beginning of a text: the mean score, which is "
        "the area under the curve of the share of texts that score so much or more, and that share "
        "at two scores. Mean and standard deviation over seeds."
    )
    return table(headings, cells, caption=caption)


def _name(held_out: str) -> str:
    return held_out.replace("_", " ")


SECTIONS = (
    Section(
        "data-study",
        "The study of training data",
        ("data_study",),
        _study,
        is_shown=lambda inputs: inputs.is_given("data_study"),
    ),
)
