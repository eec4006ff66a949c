"""Write TensorBoard's event files directly: the usual writers load PyTorch if it is installed.

A file is a series of records: a length, a checksum of the length, an `Event` message in Protocol
Buffers encoding, and a checksum of the message. Sources: TensorFlow's event.proto, summary.proto
and record_writer.cc.
"""

import io
import os
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from PIL import Image

from jax_ddpm.files.atomic import open_new, report_disk_errors

VARINT, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5  # wire types
SESSION_START = 1


class Board:
    """An event file in `folder`, created with the first event.

    Every method writes its event before it returns, and raises UserError if it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None

    def start_after(self, step: int) -> None:
        """Make TensorBoard discard the events after `step` in older files."""
        self._write(step + 1, encode_bytes(3, b"brain.Event:2"))
        self._write(step + 1, encode_bytes(7, encode_int(1, SESSION_START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Add `value` at `step` to the curve `name`."""
        entry = encode_bytes(1, name.encode()) + encode_float(2, value)
        self._write(step, encode_bytes(5, encode_bytes(1, entry)))

    def add_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Show the image `pixels` (uint8 [h, w, c]) at `step`."""
        height, width, channels = pixels.shape
        picture = encode_int(1, height) + encode_int(2, width) + encode_int(3, channels)
        picture += encode_bytes(4, encode_png(pixels))
        entry = encode_bytes(1, name.encode()) + encode_bytes(4, picture)
        self._write(step, encode_bytes(5, encode_bytes(1, entry)))

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _write(self, step: int, content: bytes) -> None:
        event = encode_double(1, time.time()) + encode_int(2, step) + content
        with report_disk_errors(self._folder):
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = open_event_file(self._folder)
            try:
                self._file.write(encode_record(event))
                self._file.flush()
            except OSError:
                self._close()  # after half a record, the next event needs another file
                raise

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # every event has been flushed, or reported
                file.close()


def open_event_file(folder: Path) -> BinaryIO:
    """Open a new file under a name that TensorBoard recognises and no other process uses."""
    name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
    return open_new(folder / name)


def encode_record(data: bytes) -> bytes:
    """Encode one record: length and data, each with its checksum."""
    length = struct.pack("<Q", len(data))
    return length + _masked_checksum(length) + data + _masked_checksum(data)


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode uint8 pixels [h, w, c], grey or colour, as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def encode_int(field: int, value: int) -> bytes:
    """Encode field number `field` with the integer `value`, 0 or more."""
    return _varint(field << 3 | VARINT) + _varint(value)


def encode_double(field: int, value: float) -> bytes:
    """Encode field number `field` with `value` in 64 bits."""
    return _varint(field << 3 | DOUBLE) + struct.pack("<d", value)


def encode_float(field: int, value: float) -> bytes:
    """Encode field number `field` with `value` in 32 bits."""
    return _varint(field << 3 | FLOAT) + np.float32(value).tobytes()


def encode_bytes(field: int, value: bytes) -> bytes:
    """Encode field number `field` with text, raw bytes or an encoded message."""
    return _varint(field << 3 | BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Encode an integer, 0 or more, in groups of seven bits, lowest first."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _masked_checksum(data: bytes) -> bytes:
    """CRC-32C, rotated and offset, because a CRC of data that contains CRCs would be weak."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """Compute the checksum CRC-32C (Castagnoli) of `data`."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _make_table() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


TABLE = _make_table()
