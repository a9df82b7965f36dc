"""Sections about the text: the funnel, what languages and sites it is of, how long it is."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from t5x_style.data.token_store import TokenStore
from t5x_style.evals.report.inputs import Inputs
from t5x_style.evals.report.markup import (
    Html,
    bar,
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

_MOST_ROWS = 15
_BINS_PER_DOUBLING = 2


def _funnel(inputs: Inputs) -> Html:
    parts: list[Html] = []
    for funnel in inputs.json("curate", "funnel.json").values():
        steps: list[dict[str, Any]] = funnel["steps"]
        if not steps:
            parts.append(note("The funnel has no steps."))
            continue
        most = max(step["in"] for step in steps)
        most_bytes = max(step["bytes_out"] for step in steps)
        rows = []
        for step in steps:
            num_bytes = step["bytes_out"]
            rows.append(
                (
                    step["name"],
                    bar(step["out"], most, number(step["out"])),
                    share(step["out"], step["in"]),
                    number(step["in"] - step["out"]),
                    bar(num_bytes, most_bytes, size(num_bytes), 2),
                )
            )
        first, last = steps[0], steps[-1]
        parts.append(
            tag(
                "p",
                f"{number(last['out'])} of {number(first['in'])} records became documents "
                f"({share(last['out'], first['in'])}), {size(last['bytes_out'])} of text "
                "in UTF-8.",
            )
        )
        parts.append(
            table(
                ("Step", "Records after it", "Kept", "Dropped", "Bytes after it"),
                rows,
                caption="From web records to documents, in the order of the pipeline; bytes are "
                "of the text or payload that the step passes on.",
            )
        )
        reasons = [
            (step["name"], reason, number(count), share(count, step["in"]))
            for step in steps
            for reason, count in sorted(
                step["dropped"].items(), key=lambda item: (-item[1], item[0])
            )
            if count
        ]
        if reasons:
            parts.append(
                table(
                    ("Step", "Reason", "Dropped", "Of the step's input"),
                    reasons,
                    caption="Every dropped record, by the reason it was dropped for.",
                    text_columns=2,
                )
            )
    return join(parts)


def _document_columns(inputs: Inputs) -> Iterator[dict[str, list[Any]]]:
    """Yields the columns this page counts, a record batch at a time."""
    # Here, so that a page without a corpus needs no pyarrow.
    try:
        from t5x_style.corpus.documents import read_documents
    except ImportError as error:
        raise ValueError(
            f"reading the documents of report.curate needs a library that is missing ({error}): "
            "pip install 't5x_style[corpus]', or leave report.curate out"
        ) from error
    for folder in inputs.folders["curate"].values():
        if any(folder.glob("*.parquet")):
            names = ["url", "language", "num_bytes", "split"]
            for batch in read_documents(folder, columns=names):
                yield batch.to_pydict()


def _site(url: str) -> str:
    try:
        return urlsplit(url).hostname or "(none)"
    except ValueError:
        return "(not a URL)"


def _ranked(title: str, documents: Counter[str], num_bytes: Counter[str], caption: str) -> Html:
    """Returns the largest groups by bytes, the rest in one row."""
    total, total_bytes = sum(documents.values()), sum(num_bytes.values())
    order = sorted(num_bytes, key=lambda name: (-num_bytes[name], name))
    shown, rest = order[:_MOST_ROWS], order[_MOST_ROWS:]
    rows: list[tuple[object, ...]] = []
    most = num_bytes[order[0]] if order else 0
    for name in shown:
        rows.append(
            (
                tag("span", name, class_="foreign"),
                number(documents[name]),
                share(documents[name], total),
                bar(num_bytes[name], most, size(num_bytes[name])),
                share(num_bytes[name], total_bytes),
            )
        )
    if rest:
        left, left_bytes = sum(documents[n] for n in rest), sum(num_bytes[n] for n in rest)
        rows.append(
            (
                tag("em", f"{number(len(rest))} others"),
                number(left),
                share(left, total),
                bar(left_bytes, max(most, left_bytes), size(left_bytes), 4),
                share(left_bytes, total_bytes),
            )
        )
    columns = (title, "Documents", "Of documents", "Bytes", "Of bytes")
    return table(columns, rows, caption=caption)


def _origins(inputs: Inputs) -> Html:
    languages, language_bytes = Counter[str](), Counter[str]()
    sites, site_bytes = Counter[str](), Counter[str]()
    for batch in _document_columns(inputs):
        for url, language, num_bytes in zip(
            batch["url"], batch["language"], batch["num_bytes"], strict=True
        ):
            for key, documents, sums in (
                (language or "(unknown)", languages, language_bytes),
                (_site(url or ""), sites, site_bytes),
            ):
                documents[key] += 1
                sums[key] += num_bytes
    if not languages:
        return tag("p", "The curated folder holds no documents.", class_="soft")
    return join(
        [
            _ranked("Language", languages, language_bytes, "Documents by identified language."),
            _ranked(
                "Site",
                sites,
                site_bytes,
                f"Documents by host name; {number(len(sites))} hosts in all.",
            ),
        ]
    )


def _histogram(label: str, values: np.ndarray, tone: int) -> Series:
    """Counts positive values in log-spaced bins, whole half-doublings apart."""
    positions = np.floor(np.log2(np.maximum(values, 1)) * _BINS_PER_DOUBLING).astype(np.int64)
    low, high = int(positions.min()), int(positions.max()) + 1
    counts = np.bincount(positions - low, minlength=high - low)
    edges = 2.0 ** (np.arange(low, high + 1) / _BINS_PER_DOUBLING)
    return Series(label, edges, counts, tone, "steps")


def _length_chart(groups: dict[str, np.ndarray], unit: str, rules: list[Rule]) -> Html:
    groups = {label: values for label, values in groups.items() if values.size}
    if not groups:
        return Html("")
    series, facts = [], []
    for tone, (label, values) in enumerate(groups.items()):
        series.append(_histogram(f"{label}: {number(len(values))} documents", values, tone))
        facts.append(
            (
                label,
                number(len(values)),
                number(int(values.sum())),
                *(number(int(q)) for q in np.percentile(values, [10, 50, 90], method="lower")),
                number(int(values.max())),
            )
        )
    drawing = chart(
        series,
        x=Axis(f"length of a document in {unit} (log scale)", "log2"),
        y=Axis("documents in a bin", low=0.0),
        description=f"Histogram of document lengths in {unit}, by split; figures in the table.",
        rules=rules,
    )
    caption = f"Document lengths in {unit}; two bins to each doubling."
    columns = ("Set", "Documents", f"All {unit}", "10%", "Median", "90%", "Longest")
    quantiles = table(columns, facts, caption=f"Quantiles of document lengths in {unit}.")
    return join([figure(drawing, caption, legend(series)), quantiles])


def context_lengths(inputs: Inputs) -> dict[str, int]:
    """Returns the context length of each training run, in tokens."""
    runs = inputs.json("runs", "run.json")
    return {label: run["identity"]["data"]["length"] for label, run in runs.items()}


def token_stores(inputs: Inputs) -> list[TokenStore]:
    """Returns the stores under the tasks folders, in order of their paths."""
    found: list[Path] = []
    for folder in inputs.folders.get("tasks", {}).values():
        found += sorted(path.parent for path in folder.rglob("store.json"))
    return [TokenStore.open(folder) for folder in found]


def _lengths(inputs: Inputs) -> Html:
    by_split: dict[str, list[int]] = {}
    for batch in _document_columns(inputs):
        for split, num_bytes in zip(batch["split"], batch["num_bytes"], strict=True):
            by_split.setdefault(split or "(none)", []).append(num_bytes)
    documents = {split: np.array(values) for split, values in sorted(by_split.items())}
    # Each task for itself: one may hold a choice of another's documents.
    tokens = {
        f"{store.index['task']}, {store.index['split']}": np.asarray(store.lengths)
        for store in token_stores(inputs)
    }
    lengths: dict[int, list[str]] = {}
    for label, length in context_lengths(inputs).items():
        lengths.setdefault(length, []).append(label)
    rules = [Rule(float(n), f"context {number(n)}") for n in sorted(lengths)]
    return join(
        [_length_chart(tokens, "tokens", rules), _length_chart(documents, "UTF-8 bytes", [])]
    )


SECTIONS = (
    Section("funnel", "Data funnel", ("curate",), _funnel),
    Section("origins", "Languages and sites", ("curate",), _origins),
    Section("lengths", "Document lengths", ("curate", "tasks"), _lengths),
)
