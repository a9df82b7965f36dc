"""Record files: checksums bit by bit, and the frame that TensorFlow reads."""

import struct

import numpy as np
import pytest

from t5x_style.record_files import BYTES, VARINT, field, masked_crc32c, record, varint


def plain_crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def unmasked(value):
    rotated = (value - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def test_the_checksum_of_the_standard():
    assert unmasked(masked_crc32c(b"123456789")) == 0xE3069283
    assert unmasked(masked_crc32c(bytes(32))) == 0x8A9136AA  # RFC 3720, appendix B.4


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 12, 1023, 1024, 1025, 1027, 1028, 4099])
def test_checksums_equal_those_taken_bit_by_bit(size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    assert unmasked(masked_crc32c(data)) == plain_crc32c(data)


def test_a_record_is_a_length_and_bytes_with_their_checksums():
    framed = record(b"abc")
    assert framed[:8] == struct.pack("<Q", 3)
    assert framed[8:12] == struct.pack("<I", masked_crc32c(framed[:8]))
    assert framed[12:15] == b"abc"
    assert framed[15:] == struct.pack("<I", masked_crc32c(b"abc"))


def test_fields_of_messages():
    assert [varint(n) for n in (0, 127, 128, 300)] == [b"\0", b"\x7f", b"\x80\1", b"\xac\2"]
    assert field(1, VARINT, varint(150)) == b"\x08\x96\x01"
    assert field(2, BYTES, b"testing") == b"\x12\x07testing"
