"""The data card: a page of Markdown about a corpus, every number of it from the stages' files."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_MOST_ROWS = 12
_DASH = "–"


def data_card(
    statistics: Mapping[str, Any], published: Mapping[str, Any], *, title: str, about: str
) -> str:
    """Returns the card as Markdown.

    Args:
      statistics: contents of `statistics.json` (`run.statistics`).
      published: the paper's numbers (`retention.published`).
      title: its heading.
      about: what the data are, where they come from, and their licences; as the user says it.
    """
    stages = statistics["stages"]
    last = stages[-1]
    return (
        "\n\n".join(
            part
            for part in (
                f"# {title}",
                about,
                f"{_count(last['documents'])} documents and {_count(last['bytes'])} bytes of text "
                f"after the stage {last['title']}. Made by the stages of {published['source']}; "
                "this page is written by `t5x_style.run.statistics` from what they left.",
                "## Stages",
                _stages(stages),
                _retention(statistics["retention"]),
                "## Dropped and masked",
                _dropped(statistics["funnel"]["steps"]),
                _masked(stages),
                "## Languages",
                _languages(last),
                "## Years",
                _years(last, published["documents_by_year"]),
                "## Statistics",
                "Means, and medians in parentheses to within a bin of the histograms in "
                "`statistics.json`.",
                _statistics(stages, statistics["measures"], is_published=True),
                "The same of the measures that the paper does not show:",
                _statistics(stages, statistics["measures"], is_published=False),
                "## Fields",
                _FIELDS,
                "## Loading",
                _LOADING,
            )
            if part
        )
        + "\n"
    )


_FIELDS = """\
`id`, `url`, `title`, `text`, `language`, `language_score`, `date` (of the crawl), `dump`,
`num_bytes` (of the text in UTF-8), `links`. From the stage Safe on `toxic_score` and `porn_score`,
of which more is worse; from High-Quality on `fluency_score` and `not_ad_score`, of which more is
better. A score is null where no model gave one."""

_LOADING = """\
Each stage is a folder of Parquet files:

```python
from t5x_style.corpus.documents import read_documents
for batch in read_documents("path/to/the/stage", columns=["text"]):
    texts = batch["text"].to_pylist()
```

`t5x_style.run.release` writes a stage as TFRecord files with metadata for `tfds.load` and seqio,
and says beside them how they are read."""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    marks = [":--" if i < text_columns else "--:" for i in range(len(columns))]
    lines = [columns, marks, *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _count(value: int | None) -> str:
    return _DASH if value is None else f"{value:,}"


def _per_cent(value: float | None) -> str:
    return _DASH if value is None else f"{100 * value:.3g}%"


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for stage in stages:
        tokens = stage["measures"].get("token_length")
        num_tokens = round(tokens["mean"] * tokens["count"]) if tokens else None
        rows.append(
            (stage["title"], _count(stage["documents"]), _count(stage["bytes"]), _count(num_tokens))
        )
    return _table(("Stage", "Documents", "Bytes", "Tokens"), rows)


def _retention(rows: Sequence[Mapping[str, Any]]) -> str:
    if rows[0]["documents"] is None:
        return "The stages left no funnel, so what each kept of the pages is not known."
    names = ("kept", "published_kept", "removed", "published_removed")
    cells = [
        (row["title"], _count(row["documents"]), *(_per_cent(row[name]) for name in names))
        for row in rows
    ]
    columns = ("Stage", "Documents", "Kept of pages", "Paper", "Removed", "Paper")
    return _table(columns, cells)


def _dropped(steps: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (step["name"], reason, _count(count))
        for step in steps
        for reason, count in sorted(step["dropped"].items(), key=lambda item: (-item[1], item[0]))
    ]
    return (
        _table(("Step", "Reason", "Dropped"), rows, text_columns=2)
        if rows
        else "Nothing was dropped."
    )


def _masked(stages: Sequence[Mapping[str, Any]]) -> str:
    masked = {kind: n for stage in stages for kind, n in stage["masked"].items()}
    if not masked:
        return "No personal data were masked, as far as the stages say."
    return "Masked in the text, the rest of which is kept: " + (
        ", ".join(
            f"{_cell(kind)} {_count(number)} times" for kind, number in sorted(masked.items())
        )
        + "."
    )


def _languages(stage: Mapping[str, Any]) -> str:
    ranked = list(stage["languages"].items())
    rows = [(name, _count(n), _per_cent(n / stage["documents"])) for name, n in ranked[:_MOST_ROWS]]
    if rest := ranked[_MOST_ROWS:]:
        num = sum(n for _, n in rest)
        rows.append((f"{len(rest)} others", _count(num), _per_cent(num / stage["documents"])))
    return _table(("Language", "Documents", "Share"), rows)


def _years(stage: Mapping[str, Any], published: Mapping[str, float]) -> str:
    rows = [
        (
            year,
            _count(counts["documents"]),
            _count(counts["bytes"]),
            _per_cent(counts["documents"] / stage["documents"]),
            _per_cent(published.get(year)),
        )
        for year, counts in stage["years"].items()
    ]
    return _table(("Year of the crawl", "Documents", "Bytes", "Share", "Paper"), rows)


def _statistics(
    stages: Sequence[Mapping[str, Any]], measures: Mapping[str, Any], *, is_published: bool
) -> str:
    rows = []
    for name, measure in measures.items():
        if measure["is_published"] == is_published:
            shown = [_mean_and_median(stage["measures"].get(name)) for stage in stages]
            rows.append((f"{measure['title']} ({measure['meaning']})", *shown))
    return _table(("Measure", *(stage["title"] for stage in stages)), rows)


def _mean_and_median(sketch: Mapping[str, Any] | None) -> str:
    if sketch is None:
        return _DASH
    return f"{number(sketch['mean'])} ({number(sketch['quantiles']['0.5'])})"


def number(value: float) -> str:
    """Returns a number with three figures, or whole with thousands separated from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
