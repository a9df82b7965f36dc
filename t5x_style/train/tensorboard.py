"""A writer of TensorBoard event files in plain Python: no TensorFlow, no tensorboard package.

An event file is a sequence of records, each a length, its checksum, the bytes of one `Event`
message and their checksum. The few fields used here are put down by hand in protobuf's wire format.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

_CRC_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected
_MASK_DELTA = 0xA282EAD8
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DT_STRING = 7


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_CRC_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """Returns the CRC-32C of `data`, rotated and shifted as record files want it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, wire_type: int, payload: bytes) -> bytes:
    key = _varint(number << 3 | wire_type)
    return key + (_varint(len(payload)) if wire_type == _BYTES else b"") + payload


def _text_field(number: int, text: str) -> bytes:
    return _field(number, _BYTES, text.encode())


def _event(step: int, *, summary: bytes = b"", file_version: str = "") -> bytes:
    event = _field(1, _FIXED64, struct.pack("<d", time.time()))
    event += _field(2, _VARINT, _varint(step))
    if file_version:
        event += _text_field(3, file_version)
    if summary:
        event += _field(5, _BYTES, summary)
    return event


def _scalar(tag: str, value: float) -> bytes:
    message = _text_field(1, tag) + _field(2, _FIXED32, struct.pack("<f", value))
    return _field(1, _BYTES, message)


def _text(tag: str, text: str) -> bytes:
    plugin = _field(1, _BYTES, _text_field(1, "text"))
    tensor = _field(1, _VARINT, _varint(_DT_STRING)) + _field(8, _BYTES, text.encode())
    message = _text_field(1, tag) + _field(9, _BYTES, plugin) + _field(8, _BYTES, tensor)
    return _field(1, _BYTES, message)


class TensorBoardWriter:
    """Appends scalars and texts to an event file of its own in a folder.

    Args:
      folder: where event files lie, made if it is not there.
      first_step: TensorBoard is told to forget what an earlier process wrote after this step.
    """

    def __init__(self, folder: str | Path, *, first_step: int = 0):
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(Path(folder) / name, "ab")  # noqa: SIM115
        self._record(_event(0, file_version="brain.Event:2"))
        # SessionLog (field 7) with status START (1): the reader drops events at or after its step.
        start = _field(7, _BYTES, _field(1, _VARINT, _varint(1)))
        self._record(_event(first_step + 1) + start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes each value as a scalar of its name."""
        summary = b"".join(_scalar(name, value) for name, value in values.items())
        self._record(_event(step, summary=summary))

    def write_text(self, name: str, text: str) -> None:
        """Writes a text, shown as Markdown, at step 0."""
        self._record(_event(0, summary=_text(name, text)))

    def progress(self, step: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _record(self, data: bytes) -> None:
        length = struct.pack("<Q", len(data))
        self._file.write(length + struct.pack("<I", masked_crc32c(length)))
        self._file.write(data + struct.pack("<I", masked_crc32c(data)))
        self._file.flush()
