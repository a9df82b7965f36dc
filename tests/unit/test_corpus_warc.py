"""Sound web archives: ours are read by everybody, and everybody's by us."""

import gzip
import io
import zlib
from collections import Counter

import brotli
import pytest
from fastwarc.warc import ArchiveIterator as FastWarcIterator
from fastwarc.warc import WarcRecordType
from warcio.archiveiterator import ArchiveIterator as WarcioIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from t5x_style.corpus.documents import Funnel
from t5x_style.corpus.http_response import RefusedResponse, parse_response
from t5x_style.corpus.pages import PageSettings, read_pages
from t5x_style.corpus.warc import read_warc
from t5x_style.corpus.warc_writer import response_record, warcinfo_record
from tests.unit.web_archives import DATE, archive_bytes, html_page, prose_pages

PAGES = prose_pages(5)


def records_of(path):
    losses = Counter()
    return list(read_warc(path, losses)), losses


def test_our_records_are_read_by_fastwarc_with_digests_that_hold():
    records = list(FastWarcIterator(io.BytesIO(archive_bytes(PAGES)), parse_http=False))
    assert records[0].record_type == WarcRecordType.warcinfo
    assert len(records) == 6
    reader = FastWarcIterator(
        io.BytesIO(archive_bytes(PAGES)), record_types=WarcRecordType.response
    )
    for record, (url, body) in zip(reader, PAGES, strict=True):
        assert record.headers["WARC-Target-URI"] == url
        assert record.http_headers.status_code == 200
        assert record.http_content_type == "text/html"
        assert record.reader.read() == body
    checked = FastWarcIterator(io.BytesIO(archive_bytes(PAGES)), parse_http=False)
    assert all(record.verify_block_digest() for record in checked)


def test_our_records_are_read_by_warcio_with_digests_that_hold():
    reader = WarcioIterator(io.BytesIO(archive_bytes(PAGES)), check_digests="raise")
    found = []
    for record in reader:
        content = record.content_stream().read()  # raises when a digest is wrong
        if record.rec_type == "response":
            found.append((record.rec_headers.get_header("WARC-Target-URI"), content))
    assert found == PAGES


def test_equal_pages_make_equal_bytes_and_the_gzip_header_holds_no_time():
    first = response_record("http://a/", DATE, b"<p>x</p>")
    assert first == response_record("http://a/", DATE, b"<p>x</p>")
    assert first[4:8] == b"\0\0\0\0"
    assert first != response_record("http://b/", DATE, b"<p>x</p>")


@pytest.mark.parametrize("is_compressed", [True, False])
def test_we_read_what_warcio_writes(tmp_path, is_compressed):
    path = tmp_path / ("x.warc.gz" if is_compressed else "x.warc")
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=is_compressed)
        writer.write_record(writer.create_warcinfo_record("x", {"isPartOf": "DUMP-7"}))
        for url, body in PAGES:
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], "HTTP/1.1")
            record = writer.create_warc_record(
                url, "response", payload=io.BytesIO(body), http_headers=headers
            )
            writer.write_record(record)
            writer.write_record(
                writer.create_warc_record(
                    url, "request", payload=io.BytesIO(b"GET / HTTP/1.1\r\n\r\n")
                )
            )
    funnel = Funnel()
    rows = [row for t in read_pages(path, PageSettings(), funnel) for row in t.to_pylist()]
    assert [(row["url"], row["body"]) for row in rows] == PAGES
    assert {row["dump"] for row in rows} == {"DUMP-7"}
    assert funnel.steps["records"].dropped == {"warcinfo": 1, "request": 5}


def test_records_of_a_file_that_is_one_gzip_member_are_all_found(tmp_path):
    path = tmp_path / "whole.warc.gz"
    path.write_bytes(gzip.compress(gzip.decompress(archive_bytes(PAGES))))
    records, losses = records_of(path)
    assert [record.type for record in records] == ["warcinfo", *["response"] * 5]
    assert not losses


def test_old_versions_and_sloppy_line_ends_are_accepted(tmp_path):
    block = b"x" * 20
    path = tmp_path / "old.warc"
    path.write_bytes(
        b"WARC/0.17\nWARC-Type: metadata\nContent-Length: 20\n\n" + block + b"\n\n"
        b"WARC/1.1\r\nwarc-type: resource\r\nLong:\r\n  folded\r\nContent-Length: 20\r\n\r\n"
        + block
        + b"\r\n\r\n"
    )
    records, losses = records_of(path)
    assert [record.type for record in records] == ["metadata", "resource"]
    assert records[1].headers["long"] == "folded"
    assert not losses


def response(body, *headers, status="200 OK"):
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(body, size=7):
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


HTML = html_page(["hello world"] * 9)
DEFLATED = zlib.compress(HTML)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (HTML, []),
        (chunked(HTML), [("Transfer-Encoding", "chunked")]),
        (HTML, [("Transfer-Encoding", "chunked")]),  # joined by the crawler
        (gzip.compress(HTML), [("Content-Encoding", "gzip")]),
        (HTML, [("Content-Encoding", "gzip")]),  # decoded by the crawler
        (DEFLATED, [("Content-Encoding", "deflate")]),
        (DEFLATED[2:-4], [("Content-Encoding", "deflate")]),
        (
            chunked(gzip.compress(HTML)),
            [("Transfer-Encoding", "chunked"), ("Content-Encoding", "gzip")],
        ),
        (HTML, [("Content-Encoding", "identity")]),
    ],
)
def test_codings_of_a_response_are_undone(body, headers):
    assert parse_response(response(body, *headers), 1 << 20).body == HTML


def test_brotli_is_undone_within_bounds():
    block = response(brotli.compress(HTML), ("Content-Encoding", "br"))
    assert parse_response(block, 1 << 20).body == HTML
    bomb = response(brotli.compress(bytes(10_000_000)), ("Content-Encoding", "br"))
    with pytest.raises(RefusedResponse, match="body_too_large"):
        parse_response(bomb, 1 << 20)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"<html>no HTTP here</html>", "http_malformed"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, "http_header_too_large"),
        (
            response(gzip.compress(bytes(10_000_000)), ("Content-Encoding", "gzip")),
            "body_too_large",
        ),
        (response(b"\x1f\x8bnot gzip", ("Content-Encoding", "gzip")), "content_encoding"),
        (response(HTML, ("Content-Encoding", "rot13")), "content_encoding"),
        (response(HTML, ("Content-Encoding", "gzip, gzip, gzip")), "content_encoding"),
        (response(b"x" * 3_000_000), "body_too_large"),
    ],
)
def test_bad_responses_are_refused_under_a_reason(block, reason):
    with pytest.raises(RefusedResponse, match=reason):
        parse_response(block, 1 << 20)


def test_what_is_no_page_is_counted(tmp_path):
    html = [("Content-Type", "text/html; charset=latin-1")]
    path = tmp_path / "mixed.warc.gz"
    path.write_bytes(
        warcinfo_record("x", DATE, {})
        + response_record("http://a/ok", DATE, HTML, http_headers=html)
        + response_record("http://a/404", DATE, HTML, status="404 Not Found", http_headers=html)
        + response_record("http://a/png", DATE, b"..", http_headers=[("Content-Type", "image/png")])
        + response_record("http://a/empty", DATE, b" \n", http_headers=html)
    )
    funnel = Funnel()
    (table,) = read_pages(path, PageSettings(), funnel)
    assert table.to_pylist() == [
        {"url": "http://a/ok", "date": DATE, "dump": "mixed", "charset": "latin-1", "body": HTML}
    ]
    assert funnel.steps["pages"].dropped == {"status_4xx": 1, "not_html": 1, "empty_body": 1}
