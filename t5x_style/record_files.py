"""Record files as TensorFlow writes them, and protobuf's wire format, in NumPy and plain Python.

A record file is a sequence of records, each a length, its checksum, some bytes and their checksum.
Both event files of TensorBoard and shards for TFDS are such files; what their records hold, a few
fields of one kind of message, is put down by hand by those who write them.
"""

import functools
import struct

import numpy as np

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types

_CRC_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected
_MASK_DELTA = 0xA282EAD8
_BLOCK_BYTES = 1024


def record(data: bytes) -> bytes:
    """Returns data framed as one record."""
    length = struct.pack("<Q", len(data))
    head = length + struct.pack("<I", masked_crc32c(length))
    return head + data + struct.pack("<I", masked_crc32c(data))


def masked_crc32c(data: bytes) -> int:
    """Returns the CRC-32C of `data`, rotated and shifted as record files want it."""
    crc = _crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    """Returns a number, 0 or above, seven bits to a byte."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, wire_type: int, payload: bytes) -> bytes:
    """Returns a field of a message; one of BYTES gets its length."""
    key = varint(number << 3 | wire_type)
    return key + (varint(len(payload)) if wire_type == BYTES else b"") + payload


@functools.cache
def _crc_tables() -> np.ndarray:
    """Returns uint32 [256 * _BLOCK_BYTES]: at 256 * k + b, what byte b does k bytes from the end.

    A CRC is linear, so that of a block is the exclusive or of what each of its bytes does.
    """
    bytes_ = np.arange(256, dtype=np.uint32)
    table = bytes_
    for _ in range(8):
        table = table >> 1 ^ np.where(table & 1, np.uint32(_CRC_POLYNOMIAL), np.uint32(0))
    tables = np.empty((_BLOCK_BYTES, 256), np.uint32)
    tables[0] = table
    for distance in range(1, _BLOCK_BYTES):
        before = tables[distance - 1]
        tables[distance] = before >> 8 ^ table[before & 0xFF]
    return tables.reshape(-1)


@functools.cache
def _places() -> np.ndarray:
    """Returns int64 [_BLOCK_BYTES]: where the table of each byte of a full block begins."""
    return 256 * np.arange(_BLOCK_BYTES - 1, -1, -1)


def _crc32c(data: bytes) -> int:
    tables, places = _crc_tables(), _places()
    crc = 0xFFFFFFFF
    for start in range(0, len(data), _BLOCK_BYTES):
        block = np.frombuffer(data, np.uint8, min(_BLOCK_BYTES, len(data) - start), start)
        # The CRC so far acts as if it were added to the first four bytes; where there are fewer,
        # the rest of it moves to the front.
        first = np.frombuffer(struct.pack("<I", crc), np.uint8)
        held = min(4, len(block))
        indices = places[_BLOCK_BYTES - len(block) :] + block
        indices[:held] ^= first[:held]
        crc = int(np.bitwise_xor.reduce(tables[indices])) ^ (crc >> 8 * held)
    return crc ^ 0xFFFFFFFF
