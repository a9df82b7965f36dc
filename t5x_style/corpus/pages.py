"""WARC files to tables of pages: the door through which every pipeline over web pages comes.

A page is the HTML body of a good response with what the record says about it. Reading is counted
in the first two steps of the funnel: "records" (all records, damage included) and "pages" (the
responses that are pages). What is on a page is left to the pipelines.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from t5x_style.corpus.documents import Funnel
from t5x_style.corpus.http_response import RefusedResponse, parse_response
from t5x_style.corpus.warc import WarcLimits, WarcRecord, read_warc

PAGE_SCHEMA = pa.schema(
    [
        pa.field("url", pa.string()),
        pa.field("date", pa.string()),
        pa.field("dump", pa.string()),
        pa.field("charset", pa.string()),  # of the HTTP header; "" if it states none
        pa.field("body", pa.large_binary()),
    ]
)
STEPS = ("records", "pages")


@dataclasses.dataclass(frozen=True)
class PageSettings:
    """Which responses are pages, and how many make a table.

    Attributes:
      warc: caps for reading records.
      media_types: Content-Types that are taken.
      max_body_bytes: longest body after decompression.
      pages_per_table: most pages of a table.
      bytes_per_table: body bytes after which a table is closed.
    """

    warc: WarcLimits = dataclasses.field(default_factory=WarcLimits)
    media_types: tuple[str, ...] = ("text/html", "application/xhtml+xml")
    max_body_bytes: int = 1 << 24
    pages_per_table: int = 64
    bytes_per_table: int = 1 << 24


def read_pages(
    path: str | os.PathLike[str],
    settings: PageSettings,
    funnel: Funnel,
    start: int = 0,
    stop: int | None = None,
    is_aligned: bool = False,
) -> Iterator[pa.Table]:
    """Yields the pages of a WARC file, or of a part of one, in order as tables of PAGE_SCHEMA.

    The dump they bear is that of the file's first record, whatever the part.

    Args:
      path: `.warc`, `.warc.gz` or `.warc.zst` file.
      settings: caps and filters.
      funnel: takes the counts of the steps "records" and "pages" once the part is read; those of
        the parts add up to those of the file.
      start, stop, is_aligned: the part, as `warc.read_warc` has it.
    """
    dump = _dump_of_file(path, settings.warc)
    losses: Counter[str] = Counter()
    others: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    rows: list[dict[str, object]] = []
    num_responses = num_pages = response_bytes = page_bytes = table_bytes = 0
    for record in read_warc(path, losses, settings.warc, start, stop, is_aligned):
        if record.type != "response":
            others[record.type] += 1
            continue
        num_responses += 1
        response_bytes += len(record.block)
        try:
            page = _page(record, dump, settings)
        except RefusedResponse as refusal:
            refused[refusal.args[0]] += 1
            continue
        num_pages += 1
        rows.append(page)
        table_bytes += len(page["body"])
        page_bytes += len(page["body"])
        if len(rows) >= settings.pages_per_table or table_bytes >= settings.bytes_per_table:
            yield pa.Table.from_pylist(rows, PAGE_SCHEMA)
            rows, table_bytes = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, PAGE_SCHEMA)
    lost = losses + others
    funnel.add("records", num_responses + lost.total(), num_responses, response_bytes, lost)
    funnel.add("pages", num_responses, num_pages, page_bytes, refused)


def _page(record: WarcRecord, dump: str, settings: PageSettings) -> dict:
    if not record.headers.get("content-type", "").startswith("application/http"):
        raise RefusedResponse("not_http")
    response = parse_response(record.block, settings.max_body_bytes)
    if response.status != 200:
        raise RefusedResponse(f"status_{response.status // 100}xx")
    if response.media_type not in settings.media_types:
        raise RefusedResponse("not_html")
    if not response.body.strip():
        raise RefusedResponse("empty_body")
    return {
        "url": record.url,
        "date": record.date,
        "dump": dump,
        "charset": response.charset,
        "body": response.body,
    }


def _dump_of_file(path: str | os.PathLike[str], limits: WarcLimits) -> str:
    """What the file's first record says, or else its name."""
    record = next(read_warc(path, Counter(), limits), None)
    name = Path(path).name.removesuffix(".gz").removesuffix(".zst").removesuffix(".warc")
    return (record and record.type == "warcinfo" and _dump_of_warcinfo(record)) or name


def _dump_of_warcinfo(record: WarcRecord) -> str:
    """The `isPartOf` field, by which Common Crawl names its dumps."""
    for line in record.block[: 1 << 16].decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "ispartof":
            return value.strip()[:256]
    return ""
