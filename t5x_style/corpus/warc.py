"""Reading WARC files (ISO 28500), plain or compressed, that may be damaged or hostile.

Each member of a compressed file and each record is checked before it is handed on: a member by its
own checksum and length, a record by its Content-Length, the blank lines behind it and its block
digest. What fails is left out and counted under a reason; reading goes on at the next place that
starts a record. Memory is bounded by the limits, time by the file's size times the largest
inflation allowed.

Many processes may work on one file, each on a part of it (`splits`). Where reading goes on depends
on where it is alone, so the parts give together what the whole gives.

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
    TAIL_BYTES,
    VERSION_LINE,
    BadMember,
    BadRecord,
    PlainSource,
    is_record_end,
)
from t5x_style.corpus.warc_members import (
    Codec,
    MemberSource,
    behind_damage,
    codec_of,
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
      inflation_ratio: most bytes a member may inflate to, for each byte it occupies.
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
    start: int = 0,
    stop: int | None = None,
    is_aligned: bool = False,
) -> Iterator[WarcRecord]:
    """Yields the sound records of a WARC file, or of a part of one, in order, of all types.

    Args:
      path: a `.warc`, `.warc.gz` or `.warc.zst` file; which, is told by its first bytes.
      losses: takes the number of places where something was lost, under a reason each:
        damaged_member (bytes or checksum wrong), truncated_member, gzip_bomb, zstd_bomb, garbage
        (bytes between members that belong to none), bad_dictionary, not_a_record,
        header_too_large, bad_header, bad_content_length, block_too_large, truncated_block,
        bad_digest.
      limits: caps; the defaults suit Common Crawl.
      start: first byte of the part: what starts here or later, be it a member, a record of an
        uncompressed file or damage, is read and counted.
      stop: end of the part: what starts here or later is not; the file's end by default.
      is_aligned: whether `start` is known to be where something starts, as those of `splits` are.
        Otherwise that is found out from the file's first byte on, which takes about as long as to
        read it: what looks like a member may lie within another.
    """
    limits = limits or WarcLimits()
    # One buffer of the reader's own: sources seek about and would only thrash Python's.
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size == 0:
            if start == 0:
                losses["empty_file"] += 1
            return
        codec, is_sound = codec_of(file, Path(path))
        if start == 0 and not is_sound:
            losses["bad_dictionary"] += 1
        if start and not is_aligned:
            first = next(_starts(file, codec, limits, start), None)
            if first is None:
                return
            start = first
        for place, record in _read(file, codec, losses, limits, start):
            if record is not None:
                yield record
            elif stop is not None and place >= stop:
                return


def splits(
    path: str | os.PathLike[str], split_bytes: int, limits: WarcLimits | None = None
) -> list[tuple[int, int]]:
    """Returns the parts of a file that processes may work on, each of about `split_bytes`.

    A file with more than one part is read through once, without its content being looked at.

    Args:
      path: a WARC file.
      split_bytes: size of a part in the file; a member is never divided.
      limits: those it will be read with.

    Returns:
      (start, stop) of each part in order, for `read_warc` with `is_aligned`.

    Raises:
      ValueError: `split_bytes` is less than 1.
    """
    if split_bytes < 1:
        raise ValueError(f"split_bytes = {split_bytes}: a part of a file has one byte at least")
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        cuts = [0]
        if size > split_bytes:
            codec, _ = codec_of(file, Path(path))
            for place in _starts(file, codec, limits or WarcLimits(), split_bytes):
                if place - cuts[-1] >= split_bytes:
                    cuts.append(place)
    return list(zip(cuts, [*cuts[1:], size], strict=True))


def _starts(file: BinaryIO, codec: Codec | None, limits: WarcLimits, least: int) -> Iterator[int]:
    """Yields where members, records of an uncompressed file, or damage start, from `least` on."""
    # Of an uncompressed file's blocks only the ends are looked at.
    block_bytes = limits.block_bytes if codec else -1
    limits = dataclasses.replace(limits, block_bytes=block_bytes, verify_digests=False)
    for place, record in _read(file, codec, Counter(), limits, 0):
        if record is None and place >= least:
            yield place


def _read(
    file: BinaryIO, codec: Codec | None, losses: Counter[str], limits: WarcLimits, offset: int
) -> Iterator[tuple[int, WarcRecord | None]]:
    """Yields the records from an offset on, where something starts, to the end of the file.

    Each is given with where it starts. Before anything is read that starts at a place, records or
    damage, the place is given with None: what comes of it depends on nothing that was before.
    """
    if codec is None:
        source = PlainSource(file, offset)
        while _skip_blank_lines(source):
            place = source.offset
            yield place, None
            if record := _take_record(source, losses, limits):
                yield place, record
        return
    size = os.fstat(file.fileno()).st_size
    while offset < size:
        yield offset, None
        extension_end = codec.end_of_extension(file, offset)
        if extension_end is not None and extension_end <= size:
            offset = extension_end
            continue
        source = MemberSource(file, offset, codec, limits.inflation_ratio)
        try:
            while _skip_blank_lines(source):
                if record := _take_record(source, losses, limits):
                    yield offset, record
            offset = source.next_offset
        except BadMember as damage:
            reason = damage.args[0]
            if reason == "damaged_member" and not starts_member(file, offset, codec):
                reason = "garbage"
            losses[reason] += 1
            offset = behind_damage(file, source, codec)


def _take_record(
    source: PlainSource, losses: Counter[str], limits: WarcLimits
) -> WarcRecord | None:
    """Takes what starts here, and the blank lines behind it; None if that is no sound record.

    Raises:
      BadMember: the member itself is broken; records it gave before were whole.
    """
    offset = source.offset
    try:
        headers = _read_headers(source, limits)
    except BadRecord as damage:
        losses[damage.args[0]] += 1
        source.skip_to_record()
        return None
    block_offset, block = source.offset, b""
    try:
        length = _content_length(headers)
        source.check_frame(length)
        if length > limits.block_bytes:
            if source.skip(length) < length:
                raise BadRecord("truncated_block")
            losses["block_too_large"] += 1
            return None
        block = source.take(length)
        if len(block) < length:
            raise BadRecord("truncated_block")
        if not is_record_end(source.peek(TAIL_BYTES)):
            raise BadRecord("bad_content_length")
    except BadRecord as damage:
        losses[damage.args[0]] += 1
        source.recover(block_offset, block)
        return None
    # Reads on first: at the end of a member its checksum is checked before the record counts.
    _skip_blank_lines(source)
    if limits.verify_digests and not _digest_agrees(headers, block):
        losses["bad_digest"] += 1
        return None
    return WarcRecord(headers, block, offset)


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
        source.take(1)  # or the same line would be found again
        raise BadRecord("not_a_record")
    num_bytes = 1024
    while True:
        head = source.peek(min(num_bytes, limits.header_bytes))
        end = _HEADER_END.search(head)
        if end or len(head) < num_bytes:
            break
        num_bytes *= 2
    headers = _parse_headers(head[: end.start()]) if end else None
    if end and headers is not None:
        source.take(end.end())
        return headers
    head = head[: end.end()] if end else head
    is_too_large = not end and len(head) == limits.header_bytes
    # Goes on at the last line in there that could start a record: where every line claims to, the
    # same bytes would be looked at for each.
    starts = [found.start() for found in VERSION_LINE.finditer(head, 1)]
    # A header that is too large may end in half of such a line.
    source.take(starts[-1] if starts else max(len(head) - is_too_large * TAIL_BYTES, 1))
    raise BadRecord("header_too_large" if is_too_large else "bad_header")


def _parse_headers(head: bytes) -> dict[str, str] | None:
    """Returns the values of a head's lines by name in lower case, None for lines that have none."""
    values: dict[str, list[str]] = {}
    name = ""
    for line in head.split(b"\n")[1:]:
        text = line.rstrip(b"\r").decode("utf-8", "replace")
        if text[:1] in (" ", "\t") and name:
            values[name].append(text.strip())
            continue
        name, colon, value = text.partition(":")
        name = name.strip().lower()
        if not colon or not name:
            return None
        values[name] = [value.strip()]
    return {name: " ".join(filter(None, parts)) for name, parts in values.items()}


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
