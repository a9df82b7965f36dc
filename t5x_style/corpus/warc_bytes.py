"""The bytes of an uncompressed WARC file, read in order through a small buffer.

A source can get past a bad record to the next one. Compressed files, whose sources build on this
one, are left to `warc_members`, what the bytes mean to `warc`.
"""

import os
import re
from typing import BinaryIO

RECORD_MAGIC = b"WARC/"
# Two carriage returns in a row come from tools that translated line ends twice.
VERSION_LINE = re.compile(rb"WARC/\d\.\d{1,2}[ \t\r]{0,4}\n")
_VERSION_LINE_BYTES = 15
TAIL_BYTES = 16
READ_BYTES = 1 << 16


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
        data = self._file.read(READ_BYTES)
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
        if num_bytes <= len(self._buffer):
            del self._buffer[:num_bytes]
            return num_bytes
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

    def recover(self, block_offset: int, block: bytes) -> None:
        """Goes on to the next record behind a bad one's header, or to the end.

        Args:
          block_offset: where the block of the bad record starts, which may have swallowed others.
          block: what was taken from there on.
        """
        del block
        if self.offset != block_offset:
            self._go_to(block_offset)
        self.skip_to_record()

    def skip_to_record(self) -> None:
        """Goes to the next version line, or to the end."""
        while True:
            self._fill(READ_BYTES)
            # Anywhere, not at the start of a line only: what stood before may be cut off.
            found = VERSION_LINE.search(self._buffer)
            if found:
                del self._buffer[: found.start()]
                return
            if self._ended:
                self._buffer.clear()
                return
            del self._buffer[:-_VERSION_LINE_BYTES]


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
