"""Where the bytes of a WARC file come from: the file itself, or its gzip members one at a time.

Both kinds of source are read in order through a small buffer and can get past a bad record to the
next one. Here stands what guards against damaged and hostile compression; what the bytes mean is
left to `warc`.
"""

import os
import re
import zlib
from typing import BinaryIO

GZIP_MAGIC = b"\x1f\x8b\x08"
RECORD_MAGIC = b"WARC/"
# Two carriage returns in a row come from tools that translated line ends twice.
VERSION_LINE = re.compile(rb"WARC/\d\.\d{1,2}[ \t\r]{0,4}\n")
_VERSION_LINE_BYTES = 15
TAIL_BYTES = 16
_READ_BYTES = 1 << 16
_INFLATE_BYTES = 1 << 16
_GZIP_WBITS = 31
# A member may inflate this far whatever its ratio: short repetitive pages are no bombs.
_FREE_INFLATION_BYTES = 1 << 22


class BadMember(Exception):
    """The bytes cannot be read on from here; `args[0]` is the reason to count."""


class BadRecord(Exception):
    """A record is wrong, but the bytes around it can still be read; `args[0]` is the reason."""


class PlainSource:
    """The bytes of an uncompressed file, taken in order."""

    def __init__(self, file: BinaryIO, offset: int):
        self._file = file
        self._position = offset
        self._size = os.fstat(file.fileno()).st_size
        self._buffer = bytearray()
        self._ended = False

    def _more(self) -> bytes:
        """Returns the next bytes, b"" at the end; raises BadMember."""
        self._file.seek(self._position)
        data = self._file.read(_READ_BYTES)
        self._position += len(data)
        return data

    @property
    def offset(self) -> int:
        """Where in the file the next byte lies."""
        return self._position - len(self._buffer)

    def _fill(self, num_bytes: int) -> None:
        while len(self._buffer) < num_bytes and not self._ended:
            data = self._more()
            self._ended = not data
            self._buffer += data

    def peek(self, num_bytes: int) -> bytes:
        """Returns up to `num_bytes` bytes without taking them; fewer only at the end."""
        self._fill(num_bytes)
        return bytes(self._buffer[:num_bytes])

    def take(self, num_bytes: int) -> bytes:
        """Takes up to `num_bytes` bytes; fewer only at the end."""
        data = self.peek(num_bytes)
        del self._buffer[: len(data)]
        return data

    def skip(self, num_bytes: int) -> int:
        """Passes over bytes and returns how many there were."""
        start = self.offset
        self._go_to(min(start + num_bytes, self._size))
        return self.offset - start

    def _go_to(self, offset: int) -> None:
        self._buffer.clear()
        self._position = offset
        self._ended = False

    def check_frame(self, length: int) -> None:
        """Looks ahead, without reading it, whether a block of this length ends as it should.

        Without this a small file whose every record states a large length would cost the square
        of its size.
        """
        end = self.offset + length
        if end > self._size:
            raise BadRecord("truncated_block")
        self._file.seek(end)
        if not is_record_end(self._file.read(TAIL_BYTES)):
            raise BadRecord("bad_content_length")

    def recover(self, block_offset: int, block: bytes) -> bool:
        """Goes on to the next record behind a bad one's header; False if there is none.

        Args:
          block_offset: where the block of the bad record starts, which may have swallowed others.
          block: what was taken from there on.
        """
        del block
        if self.offset != block_offset:
            self._go_to(block_offset)
        return self._skip_to_record()

    def _skip_to_record(self) -> bool:
        while True:
            self._fill(_READ_BYTES)
            # Anywhere, not at the start of a line only: what stood before may be cut off.
            found = VERSION_LINE.search(self._buffer)
            if found:
                del self._buffer[: found.start()]
                return True
            if self._ended:
                return False
            del self._buffer[:-_VERSION_LINE_BYTES]


class MemberSource(PlainSource):
    """The inflated bytes of the gzip member that starts at an offset."""

    def __init__(self, file: BinaryIO, offset: int, max_ratio: float):
        super().__init__(file, offset)
        self._start = offset
        self._max_ratio = max_ratio
        self._inflater = zlib.decompressobj(wbits=_GZIP_WBITS)
        self._inflated_bytes = 0
        self._recovered = False

    def _more(self) -> bytes:
        inflater = self._inflater
        while not inflater.eof:
            data = inflater.unconsumed_tail or super()._more()
            if not data:
                raise BadMember("truncated_member")
            try:
                piece = inflater.decompress(data, _INFLATE_BYTES)
            except zlib.error:
                raise BadMember("damaged_member") from None
            self._inflated_bytes += len(piece)
            most = self._max_ratio * (self.next_offset - self._start)
            if self._inflated_bytes > max(_FREE_INFLATION_BYTES, most):
                raise BadMember("gzip_bomb")
            if piece:
                return piece
        return b""

    @property
    def next_offset(self) -> int:
        """File offset of the first byte not yet inflated; behind the member once it has ended."""
        inflater = self._inflater
        left = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
        return self._position - len(left)

    @property
    def offset(self) -> int:
        return self._start

    def skip(self, num_bytes: int) -> int:
        left = num_bytes
        while left and (taken := len(self.take(min(left, _READ_BYTES)))):
            left -= taken
        return num_bytes - left

    def check_frame(self, length: int) -> None:
        """Nothing: what lies ahead is not known before it is inflated."""

    def recover(self, block_offset: int, block: bytes) -> bool:
        del block_offset
        if self._recovered:
            # Going back again and again would cost the square of the member's size.
            raise BadMember("damaged_member")
        self._recovered = True
        self._buffer[:0] = block
        return self._skip_to_record()


def is_record_end(tail: bytes) -> bool:
    """Whether what follows a block (`TAIL_BYTES` of it) looks like the end of a record.

    The standard wants two line ends; files with one or three are common and unmistakable where
    the next record or the end of the data follows.
    """
    following = tail.lstrip(b"\r\n")
    if following == b"" or tail.startswith((b"\r\n\r\n", b"\n\n")):
        return True
    return len(following) < len(tail) and (
        following.startswith(RECORD_MAGIC) or RECORD_MAGIC.startswith(following)
    )


def starts_member(file: BinaryIO, offset: int) -> bool:
    """Whether the bytes at an offset are those every gzip member begins with."""
    file.seek(offset)
    return file.read(len(GZIP_MAGIC)) == GZIP_MAGIC


def find_member(file: BinaryIO, offset: int) -> int:
    """Returns the offset of the next gzip member that inflates to a record, or the file's end."""
    keep = len(GZIP_MAGIC) - 1
    held = b""
    while True:
        file.seek(offset)
        data = file.read(_READ_BYTES)
        if not data:
            return offset
        window, base = held + data, offset - len(held)
        at = window.find(GZIP_MAGIC)
        while at >= 0:
            if _inflates_to_record(file, base + at):
                return base + at
            at = window.find(GZIP_MAGIC, at + 1)
        offset += len(data)
        held = window[-keep:]


def _inflates_to_record(file: BinaryIO, offset: int) -> bool:
    file.seek(offset)
    try:
        head = zlib.decompressobj(wbits=_GZIP_WBITS).decompress(file.read(1024), 64)
    except zlib.error:
        return False
    return head.lstrip(b"\r\n").startswith(RECORD_MAGIC)
