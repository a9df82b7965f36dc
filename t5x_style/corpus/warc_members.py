"""The members of a compressed WARC file: gzip members, or Zstandard frames, mostly of one record.

Both kinds go one way: a member is inflated piece by piece within a cap, and behind a damaged one
the next that inflates to a record is looked for. In Zstandard files (IIPC's "Zstandard Compression
for WARC Files", 1.0) a skippable frame at the start may hold a dictionary, and others are passed
over. What the inflated bytes mean is left to `warc`.
"""

from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from t5x_style.corpus.inflaters import (
    GZIP_WBITS,
    BadStream,
    Inflater,
    ZlibInflater,
    ZstdInflater,
)
from t5x_style.corpus.warc_bytes import READ_BYTES, RECORD_MAGIC, BadMember, PlainSource

# A member may inflate this far whatever its ratio: short repetitive pages are no bombs.
_FREE_INFLATION_BYTES = 1 << 22
_GZIP_MAGIC = b"\x1f\x8b\x08"
_FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
_DICTIONARY_FRAME_MAGIC = b"\x5d\x2a\x4d\x18"
_SKIPPABLE_MAGIC_END = b"\x2a\x4d\x18"  # behind a byte from 0x50 to 0x5f
_SKIPPABLE_HEAD_BYTES = 8
_RAW_BLOCK, _COMPRESSED_BLOCK = 0, 2
_MOST_BLOCK_BYTES = 1 << 17
_FRAME_HEAD_BYTES = 18
_MAX_WINDOW_BYTES = 1 << 27  # as far as the reference tool goes unasked
_MAX_DICTIONARY_BYTES = 1 << 24


class Codec(Protocol):
    """A compression of WARC files.

    Attributes:
      name: its name, which the reason for a bomb bears.
      magic: what each member starts with.
      lookback_bytes: how far an inflater may run on into the members behind one that is cut off
        before it notices.
    """

    name: str
    magic: bytes
    lookback_bytes: int

    def inflater(self) -> Inflater:
        """Returns an inflater for a member; the one before is not used any more."""
        ...

    def end_of_extension(self, file: BinaryIO, offset: int) -> int | None:
        """Returns the end of what stands at an offset without being a member, None for nothing."""
        ...

    def starts_record(self, file: BinaryIO, offset: int) -> bool:
        """Whether what has the magic at an offset inflates to the start of a record."""
        ...


class Gzip:
    """Files of gzip members (RFC 1952)."""

    name = "gzip"
    magic = _GZIP_MAGIC
    lookback_bytes = 1 << 17  # a stored block has 64 KiB at most

    def inflater(self) -> Inflater:
        return ZlibInflater(GZIP_WBITS)

    def end_of_extension(self, file: BinaryIO, offset: int) -> int | None:
        del file, offset
        return None

    def starts_record(self, file: BinaryIO, offset: int) -> bool:
        file.seek(offset)
        try:
            piece, _ = self.inflater().inflate(memoryview(file.read(1024)))
        except BadStream:
            return False
        return piece.lstrip(b"\r\n").startswith(RECORD_MAGIC)


class Zstd:
    """Files of Zstandard frames (RFC 8878).

    Args:
      dictionary: what all frames may refer to, b"" for nothing.

    Raises:
      BadStream: the dictionary is damaged.
    """

    name = "zstd"
    magic = _FRAME_MAGIC
    lookback_bytes = 2 * _MOST_BLOCK_BYTES

    def __init__(self, dictionary: bytes = b""):
        self._inflater = ZstdInflater(_MAX_WINDOW_BYTES, dictionary)

    def inflater(self) -> Inflater:
        return self._inflater.restart()

    def end_of_extension(self, file: BinaryIO, offset: int) -> int | None:
        file.seek(offset)
        head = file.read(_SKIPPABLE_HEAD_BYTES)
        if not _is_skippable(head) or len(head) < _SKIPPABLE_HEAD_BYTES:
            return None
        return offset + len(head) + int.from_bytes(head[4:], "little")

    def starts_record(self, file: BinaryIO, offset: int) -> bool:
        file.seek(offset)
        head = file.read(_FRAME_HEAD_BYTES + 3)
        try:
            start = zstandard.frame_header_size(head)
        except zstandard.ZstdError:
            return False
        block = int.from_bytes(head[start : start + 3], "little")
        kind, num_bytes = block >> 1 & 3, block >> 3
        if kind not in (_RAW_BLOCK, _COMPRESSED_BLOCK) or num_bytes > _MOST_BLOCK_BYTES:
            return False
        # The first block and no more: its content comes whole or not at all.
        file.seek(offset)
        first = memoryview(file.read(start + 3 + num_bytes))
        inflater, content = self.inflater(), b""
        try:
            while len(first) and not inflater.is_ended and len(content) < len(RECORD_MAGIC):
                piece, num_taken = inflater.inflate(first)
                content = (content + piece).lstrip(b"\r\n")
                first = first[num_taken:]
        except BadStream:
            return False
        return content.startswith(RECORD_MAGIC)


def codec_of(file: BinaryIO, path: Path) -> tuple[Codec | None, bool]:
    """Tells the compression of a file by its first bytes, or by its name where they are damaged.

    Returns:
      The codec, None for an uncompressed file; and whether its dictionary, if any, is sound.
    """
    file.seek(0)
    head = file.read(_SKIPPABLE_HEAD_BYTES)
    is_known = head.startswith((RECORD_MAGIC, _GZIP_MAGIC[:2], _FRAME_MAGIC)) or _is_skippable(head)
    if head.startswith(_GZIP_MAGIC[:2]) or (not is_known and path.suffix == ".gz"):
        return Gzip(), True
    if head.startswith(RECORD_MAGIC) or (not is_known and path.suffix != ".zst"):
        return None, True
    try:
        return Zstd(_read_dictionary(file)), True
    except BadStream:
        return Zstd(), False


def _is_skippable(head: bytes) -> bool:
    return head[1:4] == _SKIPPABLE_MAGIC_END and 0x50 <= head[0] <= 0x5F


def _read_dictionary(file: BinaryIO) -> bytes:
    """Returns the dictionary at the start of a file, b"" if there is none; raises BadStream."""
    file.seek(0)
    head = file.read(_SKIPPABLE_HEAD_BYTES)
    if not head.startswith(_DICTIONARY_FRAME_MAGIC):
        return b""
    num_bytes = int.from_bytes(head[4:], "little")
    if num_bytes > _MAX_DICTIONARY_BYTES:
        raise BadStream("the dictionary is too large")
    content = file.read(num_bytes)
    if not content.startswith(_FRAME_MAGIC):
        if len(content) < max(num_bytes, 1):
            raise BadStream("the dictionary is cut off")
        return content
    inflater, left, pieces = ZstdInflater(_MAX_WINDOW_BYTES), memoryview(content), []
    total = 0
    while not inflater.is_ended:
        if not len(left):
            raise BadStream("the dictionary is cut off")
        piece, num_taken = inflater.inflate(left)
        left = left[num_taken:]
        pieces.append(piece)
        total += len(piece)
        if total > _MAX_DICTIONARY_BYTES:
            raise BadStream("the dictionary is too large")
    return b"".join(pieces)


class MemberSource(PlainSource):
    """The inflated bytes of the member that starts at an offset."""

    def __init__(self, file: BinaryIO, offset: int, codec: Codec, max_ratio: float):
        super().__init__(file, offset)
        self._start = offset
        self._codec = codec
        self._max_ratio = max_ratio
        self._inflater = codec.inflater()
        self._left = memoryview(b"")
        self._inflated_bytes = 0
        self._recovered = False

    def _more(self) -> bytes:
        while not self._inflater.is_ended:
            if not len(self._left):
                self._left = memoryview(super()._more())
                if not len(self._left):
                    raise BadMember("truncated_member")
            try:
                piece, num_taken = self._inflater.inflate(self._left)
            except BadStream:
                raise BadMember("damaged_member") from None
            self._left = self._left[num_taken:]
            self._inflated_bytes += len(piece)
            most = self._max_ratio * (self.next_offset - self._start)
            if self._inflated_bytes > max(_FREE_INFLATION_BYTES, most):
                raise BadMember(f"{self._codec.name}_bomb")
            if piece:
                return piece
        return b""

    @property
    def next_offset(self) -> int:
        """File offset of the first byte not yet inflated; behind the member once it has ended."""
        return self._position - len(self._left)

    @property
    def offset(self) -> int:
        return self._start

    def skip(self, num_bytes: int) -> int:
        left = num_bytes
        while left and (taken := len(self.take(min(left, READ_BYTES)))):
            left -= taken
        return num_bytes - left

    def check_frame(self, length: int) -> None:
        """Nothing: what lies ahead is not known before it is inflated."""

    def recover(self, block_offset: int, block: bytes) -> None:
        del block_offset
        if self._recovered:
            # Going back again and again would cost the square of the member's size.
            raise BadMember("damaged_member")
        self._recovered = True
        self._buffer[:0] = block
        self.skip_to_record()


def starts_member(file: BinaryIO, offset: int, codec: Codec) -> bool:
    """Whether the bytes at an offset are those every member begins with."""
    file.seek(offset)
    return file.read(len(codec.magic)) == codec.magic


def behind_damage(file: BinaryIO, source: MemberSource, codec: Codec) -> int:
    """Returns the offset of the next member behind a bad one that inflates to a record.

    The search starts a little before the place where the damage was noticed, as the inflater may
    have run on into the next member; no further, or members within members could have one stretch
    inflated over and over.
    """
    return _find_member(
        file, max(source.offset + 1, source.next_offset - codec.lookback_bytes), codec
    )


def _find_member(file: BinaryIO, offset: int, codec: Codec) -> int:
    """Returns the offset of the next member that inflates to a record, or the file's end."""
    keep = len(codec.magic) - 1
    held = b""
    while True:
        file.seek(offset)
        data = file.read(READ_BYTES)
        if not data:
            return offset
        window, base = held + data, offset - len(held)
        at = window.find(codec.magic)
        while at >= 0:
            if codec.starts_record(file, base + at):
                return base + at
            at = window.find(codec.magic, at + 1)
        offset += len(data)
        held = window[-keep:]
