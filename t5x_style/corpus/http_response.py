"""The HTTP response inside a WARC record: status, headers, and the body with its codings undone.

Everything is bounded: the header, the body after decompression, and the number of codings. What
cannot be read is refused under a reason. Nothing is fetched from anywhere.
"""

import dataclasses
import re

import brotli

from t5x_style.corpus.inflaters import (
    GZIP_WBITS,
    RAW_WBITS,
    ZLIB_WBITS,
    BadStream,
    Inflater,
    ZlibInflater,
    ZstdInflater,
)

_HEADER_BYTES = 1 << 16
_PIECE_BYTES = 1 << 16
_MOST_CODINGS = 2
_MOST_CHUNKS = 1 << 18
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_WINDOW_BYTES = 1 << 23  # the largest that a server may use (RFC 9659)
_HEADER_END = re.compile(rb"\r{0,2}\n\r{0,2}\n")
_STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})(?:[ \t][^\r\n]*)?\r{0,2}\n")
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]{0,1024})?\r?\n")
_CONTENT_TYPE = re.compile(r"\s*([\w.+-]+/[\w.+-]+)")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)


class RefusedResponse(Exception):
    """The response is not used; `args[0]` is the reason to count."""


@dataclasses.dataclass(frozen=True)
class HttpResponse:
    """A response: status code, headers (names in lower case, last one wins), body as bytes."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def media_type(self) -> str:
        """Type and subtype of Content-Type in lower case, "" if there is none."""
        found = _CONTENT_TYPE.match(self.headers.get("content-type", ""))
        return found.group(1).lower() if found else ""

    @property
    def charset(self) -> str:
        """The charset that Content-Type states, "" if none."""
        found = _CHARSET.search(self.headers.get("content-type", "")[:256])
        return found.group(1) if found else ""


def parse_response(block: bytes, max_body_bytes: int) -> HttpResponse:
    """Reads a response and undoes its transfer and content codings.

    Args:
      block: block of a WARC response record.
      max_body_bytes: most bytes of body after decompression.

    Raises:
      RefusedResponse: http_malformed, http_header_too_large, too_many_chunks, content_encoding
        (unknown or damaged), body_too_large.
    """
    response = _split_head(block)
    body, headers = response.body, response.headers
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _dechunked(body)
    codings = [name.strip().lower() for name in headers.get("content-encoding", "").split(",")]
    codings = [name for name in codings if name not in ("", "identity")]
    if len(codings) > _MOST_CODINGS:
        raise RefusedResponse("content_encoding")
    for coding in reversed(codings):
        body = _decoded(body, coding, max_body_bytes)
    if len(body) > max_body_bytes:
        raise RefusedResponse("body_too_large")
    return dataclasses.replace(response, body=body)


def _split_head(block: bytes) -> HttpResponse:
    status_line = _STATUS_LINE.match(block, 0, _HEADER_BYTES)
    if not status_line:
        raise RefusedResponse("http_malformed")
    # From the status line's own end: a response without any headers has its blank line there.
    end = _HEADER_END.search(block, status_line.end() - 2, _HEADER_BYTES)
    if not end:
        is_long = len(block) > _HEADER_BYTES
        raise RefusedResponse("http_header_too_large" if is_long else "http_malformed")
    headers: dict[str, str] = {}
    for line in block[status_line.end() : end.start()].split(b"\n"):
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return HttpResponse(int(status_line.group(1)), headers, block[end.end() :])


def _dechunked(body: bytes) -> bytes:
    """Joins the chunks; gives the body as it is where a crawler has already joined them."""
    pieces, position = [], 0
    while size_line := _CHUNK_SIZE.match(body, position):
        if len(pieces) == _MOST_CHUNKS:
            raise RefusedResponse("too_many_chunks")
        size = int(size_line.group(1), 16)
        start = size_line.end()
        if size == 0:
            return b"".join(pieces)
        if start + size > len(body):
            break
        pieces.append(body[start : start + size])
        position = start + size
        position += 2 if body.startswith(b"\r\n", position) else body.startswith(b"\n", position)
    return b"".join(pieces) if pieces else body


def _decoded(body: bytes, coding: str, max_bytes: int) -> bytes:
    if coding in ("gzip", "x-gzip"):
        if not body.startswith(b"\x1f\x8b"):
            return body  # stored decoded under the header of the encoded response
        return _inflated(body, ZlibInflater(GZIP_WBITS), max_bytes)
    if coding == "deflate":
        # The name means zlib, but many servers send a bare deflate stream.
        is_zlib = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
        return _inflated(body, ZlibInflater(ZLIB_WBITS if is_zlib else RAW_WBITS), max_bytes)
    if coding == "zstd":
        if not body.startswith(_ZSTD_MAGIC):
            return body
        return _inflated(body, ZstdInflater(_ZSTD_WINDOW_BYTES), max_bytes)
    if coding == "br":
        return _unbrotlied(body, max_bytes)
    raise RefusedResponse("content_encoding")


def _inflated(body: bytes, inflater: Inflater, max_bytes: int) -> bytes:
    left, pieces, total = memoryview(body), [], 0
    try:
        while len(left) and not inflater.is_ended:
            piece, num_taken = inflater.inflate(left)
            left = left[num_taken:]
            total += len(piece)
            if total > max_bytes:
                raise RefusedResponse("body_too_large")
            pieces.append(piece)
    except BadStream:
        raise RefusedResponse("content_encoding") from None
    # A page cut off by the crawler's size limit is still a page; one that gives nothing is not.
    if not total and not inflater.is_ended:
        raise RefusedResponse("content_encoding")
    return b"".join(pieces)


def _unbrotlied(body: bytes, max_bytes: int) -> bytes:
    inflater = brotli.Decompressor()
    pieces, total = [], 0
    data = body
    try:
        while not inflater.is_finished():
            piece = inflater.process(data, output_buffer_limit=_PIECE_BYTES)
            data = b""
            total += len(piece)
            if total > max_bytes:
                raise RefusedResponse("body_too_large")
            if not piece and inflater.can_accept_more_data():
                break
            pieces.append(piece)
    except brotli.error:
        raise RefusedResponse("content_encoding") from None
    return b"".join(pieces)
