"""Sections about what the models can do: bits per byte, by position, and samples of text."""

from typing import Any

import numpy as np

from t5x_style.evals.report.inputs import Inputs
from t5x_style.evals.report.markup import Html, figure, join, note, number, size, table, tag
from t5x_style.evals.report.page import Section
from t5x_style.evals.report.plots import Axis, Rule, Series, chart, legend

_NUM_TONES = 4


def evaluated(inputs: Inputs) -> list[dict[str, Any]]:
    """Returns the rows of every evaluation.json: one for each checkpoint and context length."""
    files = inputs.json("evaluation", "evaluation.json").values()
    return [row for contents in files for row in contents["checkpoints"]]


def _plus_minus(row: dict[str, Any], key: str = "bits_per_byte") -> str:
    """Returns a value and its standard error; a difference with its sign."""
    value = row.get(key)
    error = row.get("standard_error" if key == "bits_per_byte" else "difference_error")
    if value is None:
        return "–"
    shown = f"{value:.4f}" if key == "bits_per_byte" else f"{value:+.4f}".replace("-", "−")
    return shown if error is None else f"{shown} ± {error:.4f}"


def _bits_per_byte(inputs: Inputs) -> Html:
    rows = [
        (
            row["name"],
            number(row["step"]),
            number(row["length"]),
            f"{row['rope_base']:,.0f}",
            tag("strong", _plus_minus(row)),
            _plus_minus(row, "difference"),
            "–" if row["loss"] is None else f"{row['loss']:.4f}",
            number(row["num_tokens"]),
            size(row["num_bytes"]),
        )
        for row in evaluated(inputs)
    ]
    if not rows:
        return note("The evaluation holds no checkpoint.")
    baselines = {row["baseline"] for row in evaluated(inputs) if row.get("baseline")}
    headings = (
        "Checkpoint",
        "Step",
        "Context",
        "RoPE base",
        "Bits per byte",
        f"Difference to {', '.join(sorted(baselines)) or 'the first'}",
        "Loss (nats per token)",
        "Tokens",
        "Text",
    )
    explanation = tag(
        "p",
        "Bits per byte: the sum of the negative log-likelihoods of all held-out tokens, in bits, "
        "over the UTF-8 bytes of the text; the end-of-document token counts its bits and no byte. "
        "± is one standard error, with documents, or the pieces of one context's length that they "
        "are cut into, as independent draws; pieces of one document are alike, so at a short "
        "context it is understated. Differences are taken piece by piece, at the same context.",
    )
    caption = "Held-out documents, by checkpoint and context length in tokens. Lower is better."
    return join([explanation, table(headings, rows, caption=caption)])


def _trained_lengths(inputs: Inputs) -> list[Rule]:
    lengths: dict[int, list[str]] = {}
    for row in evaluated(inputs):
        if row.get("trained_length"):
            names = lengths.setdefault(int(row["trained_length"]), [])
            if row["name"] not in names:
                names.append(row["name"])
    return [Rule(float(n), f"trained at {number(n)}: {', '.join(lengths[n])}") for n in lengths]


def _curve(
    row: dict[str, Any], buckets: list[dict[str, Any]], tone: int, key: str, label: str
) -> Series:
    middle = np.array([np.sqrt(max(b["start"], 1) * b["stop"]) for b in buckets])
    error_key = "standard_error" if key == "bits_per_byte" else "difference_error"
    value, error = (
        np.array([np.nan if b.get(k) is None else b[k] for b in buckets], np.float64)
        for k in (key, error_key)
    )
    return Series(label, middle, value, tone, "marks", value - error, value + error)


def _position_table(rows: list[dict[str, Any]], key: str) -> Html:
    spans = sorted({(b["start"], b["stop"]) for row in rows for b in row[key]})
    compared = [row for row in rows if row.get("baseline")]
    cells = []
    for start, stop in spans:
        line: list[object] = [f"{number(start)} to {number(stop - 1)}"]
        tokens = "–"
        for row, value in [(r, "bits_per_byte") for r in rows] + [
            (r, "difference") for r in compared
        ]:
            found = [b for b in row[key] if (b["start"], b["stop"]) == (start, stop)]
            line.append(_plus_minus(found[0], value) if found else "–")
            tokens = number(found[0]["num_tokens"]) if found else tokens
        cells.append((*line, tokens))
    columns = (
        "Position",
        *(row["name"] for row in rows),
        *(f"{row['name']} − {row['baseline']}" for row in compared),
        "Tokens",
    )
    caption = "Bits per byte (± one standard error) by position in the document, in tokens."
    return table(columns, cells, caption=caption)


def _around_zero(label: str, series: list[Series]) -> Axis:
    """Returns an axis that shows 0, on whichever side of it the values are."""
    values = np.concatenate([np.asarray(s.y) for s in series])
    low, high = np.nanmin(values), np.nanmax(values)
    return Axis(label, low=0.0 if low > 0 else None, high=0.0 if high < 0 else None)


def _positions(inputs: Inputs) -> Html:
    by_length: dict[int, list[dict[str, Any]]] = {}
    for row in evaluated(inputs):
        by_length.setdefault(int(row["length"]), []).append(row)
    if not by_length:
        return note("The evaluation holds no checkpoint.")
    length = max(by_length)
    rows = by_length[length]
    key = "by_position_long" if all(row.get("by_position_long") for row in rows) else "by_position"
    if key == "by_position_long":
        pieces = max(b["num_pieces"] for b in rows[0][key])
        selection = (
            f"Only the {number(pieces)} stretches of held-out text with at least "
            f"{number(rows[0]['long_tokens'])} tokens, so every point is of the same text."
        )
    else:
        selection = (
            f"All held-out documents: none holds {number(length)} tokens, so later points are of "
            "fewer and longer documents, and their level is not comparable with that of earlier "
            "points. The lines are comparable with one another at each point."
        )
    x = Axis(
        "position of the predicted token in the document, in tokens (log scale)",
        "log2",
        high=float(length),
    )
    rules = _trained_lengths(inputs)
    values = [
        _curve(
            row,
            row[key],
            i % _NUM_TONES,
            "bits_per_byte",
            f"{row['name']}, RoPE base {row['rope_base']:,.0f}",
        )
        for i, row in enumerate(rows)
    ]
    caption = (
        f"Bits per byte by position, each checkpoint with its own RoPE base and a context of "
        f"{number(length)} tokens. {selection} Points are means over a bucket of positions, drawn "
        "at its geometric middle; bands are one standard error."
    )
    drawing = chart(
        values, x=x, y=Axis("bits per byte"), description=caption, rules=rules, height=320.0
    )
    parts = [figure(drawing, caption, legend(values))]
    differences = [
        _curve(row, row[key], i % _NUM_TONES, "difference", f"{row['name']} − {row['baseline']}")
        for i, row in enumerate(rows)
        if row.get("baseline")
    ]
    if differences:
        caption = (
            "The same as differences in bits per byte, taken piece by piece, so that how hard the "
            "text is drops out; below 0 is better. Bands are one standard error of the difference."
        )
        drawing = chart(
            differences,
            x=x,
            y=_around_zero("difference in bits per byte", differences),
            description=caption,
            rules=rules,
            height=260.0,
        )
        parts.append(figure(drawing, caption, legend(differences)))
    return join([*parts, _position_table(rows, key)])


def _sample(sample: dict[str, Any]) -> Html:
    facts = [f"{number(sample['num_tokens'])} tokens"] if "num_tokens" in sample else []
    if sample.get("is_stopped"):
        facts.append("ended by itself")
    if sample.get("top_k"):  # 0 is no limit
        facts.append(f"top-k {sample['top_k']}")
    for key, label in (
        ("temperature", "temperature"),
        ("top_p", "top-p"),
        ("seed", "seed"),
    ):
        if sample.get(key) is not None:
            facts.append(f"{label} {sample[key]}")
    header = tag("header", tag("strong", sample["name"]), " · ", " · ".join(facts))
    prompt = tag("span", sample["prompt"], class_="prompt")
    body = tag("pre", prompt, sample["text"], dir="auto", tabindex="0")
    return tag("article", header, body, class_="sample")


def _samples(inputs: Inputs) -> Html:
    samples = [s for found in inputs.json("samples", "samples.json").values() for s in found]
    if not samples:
        return note("The generate stage made no samples.")
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        by_prompt.setdefault(sample["prompt"], []).append(sample)
    parts = [
        tag(
            "p",
            f"All {number(len(samples))} samples, none chosen. The prompt is dimmed, the rest is "
            "what the model wrote. Characters that a page cannot show stand as \ufffd.",
        )
    ]
    for i, group in enumerate(by_prompt.values(), start=1):
        parts.append(tag("h3", f"Prompt {i}" if group[0]["prompt"] else f"Prompt {i}: none"))
        parts.extend(_sample(sample) for sample in group)
    return join(parts)


SECTIONS = (
    Section("bits-per-byte", "Bits per byte", ("evaluation",), _bits_per_byte),
    Section("positions", "Bits per byte by position", ("evaluation",), _positions),
    Section("samples", "Samples", ("samples",), _samples),
)
