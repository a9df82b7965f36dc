"""Taking pieces out of documents' texts, so that links keep their places in what is left.

Which pieces is for others to say: the rules on lines of `clean` and `line_corrections`.
"""

import bisect
from collections.abc import Callable, Sequence

import pyarrow as pa

from t5x_style.corpus.documents import document_id

Span = tuple[int, int]


def cut_texts(table: pa.Table, cuts: Sequence[Sequence[Span]]) -> pa.Table:
    """Returns documents without the spans of each, with ids and sizes of what is left.

    Args:
      table: N documents (`documents.TEXT_SCHEMA`).
      cuts: N lists of spans [start, end) in characters, in order.
    """
    if not any(cuts):
        return table
    rows = table.to_pylist()
    for row, spans in zip(rows, cuts, strict=True):
        if spans:
            row["text"], row["links"] = cut_spans(row["text"], spans, row["links"])
            row["num_bytes"] = len(row["text"].encode("utf-8"))
            row["id"] = document_id(row["url"], row["text"])
    return pa.Table.from_pylist(rows, table.schema)


def line_spans(text: str, edit: Callable[[str], Sequence[Span] | None]) -> list[Span]:
    """Returns the spans [start, end) of a text that an edit of its lines takes out, in order.

    A line goes with the newline behind it, the last one with that before it.

    Args:
      text: lines, with a newline between two.
      edit: from a line to the spans of it that go, in order; None if all of it goes.
    """
    spans: list[Span] = []
    start, kept_end = 0, 0
    for line in text.split("\n"):
        end = start + len(line)
        of_line = edit(line)
        if of_line is None:
            spans.append((start, min(end + 1, len(text))))
        else:
            spans += [(start + first, start + last) for first, last in of_line]
            kept_end = end
        start = end + 1
    if spans and spans[-1][1] == len(text) and spans[-1][0] > kept_end:
        # What stands behind the last kept line goes with the newline before it.
        spans = [span for span in spans if span[1] <= kept_end] + [(kept_end, len(text))]
    return spans


def cut_spans(text: str, spans: Sequence[Span], links: Sequence[dict]) -> tuple[str, list[dict]]:
    """Returns the text without the spans, and the links with offsets into it.

    A link that starts or ends inside a span loses its place (-1), not its address.
    """
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    parts: list[str] = []
    cut_before: list[int] = [0]
    for start, end, last_end in zip(starts, ends, [0, *ends], strict=False):
        parts.append(text[last_end:start])
        cut_before.append(cut_before[-1] + end - start)
    parts.append(text[ends[-1] if ends else 0 :])

    def moved(offset: int) -> int | None:
        number = bisect.bisect_right(starts, offset)
        is_cut = number > 0 and offset < ends[number - 1]
        return None if is_cut else offset - cut_before[number]

    moved_links = []
    for link in links:
        size = max(0, link["end"] - link["start"])
        start, last = moved(link["start"]), moved(link["start"] + max(0, size - 1))
        if link["start"] < 0 or start is None or last is None:
            start = end = -1
        else:
            end = last + min(1, size)
        moved_links.append({**link, "start": start, "end": end})
    return "".join(parts), moved_links
