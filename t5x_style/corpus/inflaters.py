"""Decompression a bounded piece at a time, for bytes from strangers.

However small the input, one step gives back a bounded piece, so that whoever calls can stop a bomb
before it is in memory. How much is too much is the callers' to say.
"""

import zlib
from typing import Protocol

import zstandard

# zlib's argument for each wrapping of a deflate stream.
GZIP_WBITS, ZLIB_WBITS, RAW_WBITS = 31, 15, -15
_FEED_BYTES = 1 << 16
_PIECE_BYTES = 1 << 16
# Four bytes may stand for a block of 128 KiB and the library has no cap on what it gives back:
# this much gives 16 MiB at most.
_ZSTD_FEED_BYTES = 512


class BadStream(Exception):
    """The bytes are not what the compression makes."""


class Inflater(Protocol):
    """A stream that is being decompressed."""

    @property
    def is_ended(self) -> bool:
        """Whether the stream's end has been seen, and what it says of its content is right."""
        ...

    def inflate(self, data: memoryview) -> tuple[bytes, int]:
        """Returns the next piece, which may be empty, and how many bytes of `data` it took.

        Raises:
          BadStream: the bytes are damaged.
        """
        ...


class ZlibInflater:
    """A deflate stream: gzip member, zlib or raw.

    Args:
      wbits: GZIP_WBITS, ZLIB_WBITS or RAW_WBITS.
    """

    def __init__(self, wbits: int):
        self._stream = zlib.decompressobj(wbits=wbits)

    @property
    def is_ended(self) -> bool:
        return self._stream.eof

    def inflate(self, data: memoryview) -> tuple[bytes, int]:
        stream = self._stream
        fed = data[:_FEED_BYTES]
        try:
            piece = stream.decompress(fed, _PIECE_BYTES)
        except zlib.error as error:
            raise BadStream(str(error)) from None
        left = stream.unused_data if stream.eof else stream.unconsumed_tail
        return piece, len(fed) - len(left)


class ZstdInflater:
    """A Zstandard frame (RFC 8878).

    Args:
      max_window_bytes: largest window that a frame may ask for.
      dictionary: dictionary in Zstandard's own format, b"" for none.

    Raises:
      BadStream: the dictionary is damaged.
    """

    def __init__(self, max_window_bytes: int, dictionary: bytes = b""):
        try:
            known = (
                zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_FULLDICT)
                if dictionary
                else None
            )
            self._frames = zstandard.ZstdDecompressor(known, max_window_size=max_window_bytes)
            self._stream = self._frames.decompressobj()
        except zstandard.ZstdError as error:
            raise BadStream(str(error)) from None

    def restart(self) -> "ZstdInflater":
        """Forgets the frame and takes another, with the dictionary that is loaded already."""
        self._stream = self._frames.decompressobj()
        return self

    @property
    def is_ended(self) -> bool:
        return self._stream.eof

    def inflate(self, data: memoryview) -> tuple[bytes, int]:
        fed = data[:_ZSTD_FEED_BYTES]
        try:
            piece = self._stream.decompress(fed)
        except zstandard.ZstdError as error:
            raise BadStream(str(error)) from None
        return piece, len(fed) - len(self._stream.unused_data)
