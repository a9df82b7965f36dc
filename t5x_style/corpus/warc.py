"""Reading WARC files (ISO 28500), `.warc` and `.warc.gz`, that may be damaged or hostile.

Each gzip member and each record is checked before it is handed on: a member by its own CRC and
length, a record by its Content-Length, the blank lines behind it and its block digest. What fails
is left out and counted under a reason; reading goes on at the next place that starts a record.
Memory is bounded by the limits, time by the file's size times the largest inflation allowed.

Records are read by position, so the file must be seekable. What is inside a response is left to
`http_response`, what becomes of it to the pipelines.
"""

import base64
import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from t5x_style.corpus.warc_bytes import (
    GZIP_MAGIC,
    RECORD_MAGIC,
    TAIL_BYTES,
    VERSION_LINE,
    BadMember,
    BadRecord,
    MemberSource,
    PlainSource,
    find_member,
    is_record_end,
    starts_member,
)

_KNOWN_TYPES = {
    "warcinfo",
    "response",
    "resource",
    "request",
    "metadata",
    "revisit",
    "conversion",
    "continuation",
}


@dataclasses.dataclass(frozen=True)
class WarcLimits:
    """Caps that keep hostile files cheap.

    Attributes:
      header_bytes: longest header of a record.
      block_bytes: longest block (HTTP headers and body) kept; longer ones are dropped.
      inflation_ratio: most bytes a gzip member may inflate to, for each byte it occupies.
      verify_digests: whether a record whose SHA-1 block digest is wrong is dropped.
    """

    header_bytes: int = 1 << 16
    block_bytes: int = 1 << 25
    inflation_ratio: float = 300.0
    verify_digests: bool = True


@dataclasses.dataclass(frozen=True)
class WarcRecord:
    """One record: its headers (names in lower case), its block, and where its member starts."""

    headers: dict[str, str]
    block: bytes
    offset: int

    @property
    def type(self) -> str:
        """WARC-Type, or "unknown_type" for one the standard does not know."""
        name = self.headers.get("warc-type", "").strip().lower()
        return name if name in _KNOWN_TYPES else "unknown_type"

    @property
    def url(self) -> str:
        """WARC-Target-URI without the angle brackets that some writers put around it."""
        return self.headers.get("warc-target-uri", "").strip().strip("<>")

    @property
    def date(self) -> str:
        """WARC-Date as written (ISO 8601)."""
        return self.headers.get("warc-date", "").strip()


def read_warc(
    path: str | os.PathLike[str],
    losses: Counter[str],
    limits: WarcLimits | None = None,
) -> Iterator[WarcRecord]:
    """Yields the sound records of a WARC file in order, of all types.

    Args:
      path: a `.warc` or `.warc.gz` file; which of the two is told by its first bytes.
      losses: takes the number of places where something was lost, under a reason each:
        damaged_member (bytes or CRC wrong), truncated_member, gzip_bomb, garbage (bytes between
        members that belong to none), not_a_record, header_too_large, bad_header,
        bad_content_length, block_too_large, truncated_block, bad_digest.
      limits: caps; the defaults suit Common Crawl.
    """
    limits = limits or WarcLimits()
    # One buffer of the reader's own: sources seek about and would only thrash Python's.
    with open(path, "rb", buffering=0) as file:
        head = file.read(len(RECORD_MAGIC))
        if not head:
            losses["empty_file"] += 1
            return
        is_gzip = head[:2] == GZIP_MAGIC[:2] or (
            not head.startswith(RECORD_MAGIC) and Path(path).suffix == ".gz"
        )
        if is_gzip:
            yield from _read_members(file, losses, limits)
        else:
            yield from _read_source(PlainSource(file, 0), losses, limits)


def _read_members(file: BinaryIO, losses: Counter[str], limits: WarcLimits) -> Iterator[WarcRecord]:
    offset, size = 0, os.fstat(file.fileno()).st_size
    while offset < size:
        source = MemberSource(file, offset, limits.inflation_ratio)
        try:
            yield from _read_source(source, losses, limits)
            offset = source.next_offset
        except BadMember as damage:
            is_garbage = damage.args[0] == "damaged_member" and not starts_member(file, offset)
            losses["garbage" if is_garbage else damage.args[0]] += 1
            # From just behind the start: the inflater may have read past the next one's.
            offset = find_member(file, offset + 1)


def _read_source(
    source: PlainSource, losses: Counter[str], limits: WarcLimits
) -> Iterator[WarcRecord]:
    """Yields the records of a member or of an uncompressed file.

    Raises:
      BadMember: the member itself is broken; records it gave before were whole.
    """
    while _skip_blank_lines(source):
        offset = source.offset
        try:
            headers = _read_headers(source, limits)
        except BadRecord as damage:
            losses[damage.args[0]] += 1
            source.take(1)  # or the same line would be found again
            if not source.recover(source.offset, b""):
                return
            continue
        block_offset, block = source.offset, b""
        try:
            length = _content_length(headers)
            source.check_frame(length)
            if length > limits.block_bytes:
                if source.skip(length) < length:
                    raise BadRecord("truncated_block")
                losses["block_too_large"] += 1
                continue
            block = source.take(length)
            if len(block) < length:
                raise BadRecord("truncated_block")
            if not is_record_end(source.peek(TAIL_BYTES)):
                raise BadRecord("bad_content_length")
        except BadRecord as damage:
            losses[damage.args[0]] += 1
            if not source.recover(block_offset, block):
                return
            continue
        # Reads on first: at the end of a member its CRC is checked before the record counts.
        _skip_blank_lines(source)
        if limits.verify_digests and not _digest_agrees(headers, block):
            losses["bad_digest"] += 1
            continue
        yield WarcRecord(headers, block, offset)


def _skip_blank_lines(source: PlainSource) -> bool:
    """Skips line ends; returns whether anything follows."""
    while (head := source.peek(4096)) != b"":
        blank = len(head) - len(head.lstrip(b"\r\n"))
        source.take(blank)
        if blank < len(head):
            return True
    return False


_HEADER_END = re.compile(rb"\r{0,2}\n\r{0,2}\n")


def _read_headers(source: PlainSource, limits: WarcLimits) -> dict[str, str]:
    if not VERSION_LINE.match(source.peek(32)):
        raise BadRecord("not_a_record")
    num_bytes = 1024
    while True:
        head = source.peek(min(num_bytes, limits.header_bytes))
        end = _HEADER_END.search(head)
        if end:
            break
        if len(head) < num_bytes:
            at_limit = len(head) == limits.header_bytes
            raise BadRecord("header_too_large" if at_limit else "bad_header")
        num_bytes *= 2
    source.take(end.end())
    headers: dict[str, str] = {}
    name = ""
    for line in head[: end.start()].split(b"\n")[1:]:
        text = line.rstrip(b"\r").decode("utf-8", "replace")
        if text[:1] in (" ", "\t") and name:
            headers[name] = f"{headers[name]} {text.strip()}".strip()
            continue
        name, colon, value = text.partition(":")
        name = name.strip().lower()
        if not colon or not name:
            raise BadRecord("bad_header")
        headers[name] = value.strip()
    return headers


def _content_length(headers: dict[str, str]) -> int:
    text = headers.get("content-length", "")
    # Digits only: int() would also take signs, spaces, underscores and other scripts' digits.
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise BadRecord("bad_content_length")
    return int(text)


def _digest_agrees(headers: dict[str, str], block: bytes) -> bool:
    """Whether the block has the SHA-1 its header states; True where it states none we know."""
    algorithm, _, stated = headers.get("warc-block-digest", "").partition(":")
    if algorithm.lower() not in ("sha1", "sha-1"):
        return True
    digest = hashlib.sha1(block, usedforsecurity=False)
    if len(stated) == 40:
        return digest.hexdigest() == stated.lower()
    return base64.b32encode(digest.digest()).decode() == stated.upper()
