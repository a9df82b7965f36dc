"""A writer of TensorBoard event files in plain Python: no TensorFlow, no tensorboard package.

An event file is a record file (`record_files`) of `Event` messages, of which a few fields are used
here.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from t5x_style.record_files import BYTES, FIXED32, FIXED64, VARINT, field, record, varint

_DT_STRING = 7


def _text_field(number: int, text: str) -> bytes:
    return field(number, BYTES, text.encode())


def _event(step: int, *, summary: bytes = b"", file_version: str = "") -> bytes:
    event = field(1, FIXED64, struct.pack("<d", time.time()))
    event += field(2, VARINT, varint(step))
    if file_version:
        event += _text_field(3, file_version)
    if summary:
        event += field(5, BYTES, summary)
    return event


def _scalar(tag: str, value: float) -> bytes:
    message = _text_field(1, tag) + field(2, FIXED32, struct.pack("<f", value))
    return field(1, BYTES, message)


def _text(tag: str, text: str) -> bytes:
    plugin = field(1, BYTES, _text_field(1, "text"))
    tensor = field(1, VARINT, varint(_DT_STRING)) + field(8, BYTES, text.encode())
    message = _text_field(1, tag) + field(9, BYTES, plugin) + field(8, BYTES, tensor)
    return field(1, BYTES, message)


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
        start = field(7, BYTES, field(1, VARINT, varint(1)))
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
        self._file.write(record(data))
        self._file.flush()
