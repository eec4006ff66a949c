"""The IDX format of MNIST and Fashion-MNIST (yann.lecun.com/exdb/mnist): unsigned bytes only."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jax_ddpm.errors import UserError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """The array in an IDX file, plain or gzipped.

    Raises UserError if the file is not IDX of unsigned bytes, or not as long as it says.
    """
    raw = _read_bytes(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != UNSIGNED_BYTE:
        raise UserError(
            f"{path} is not an IDX file of unsigned bytes: its first bytes are {raw[:4]!r}"
        )
    num_dims = raw[3]
    header = 4 + 4 * num_dims
    if len(raw) < header:
        raise UserError(f"{path} is truncated: it ends inside its {header}-byte header")
    shape = struct.unpack(f">{num_dims}I", raw[4:header])
    expected = int(np.prod(shape, dtype=object))
    if len(raw) - header != expected:
        raise UserError(
            f"{path} is damaged: its header announces {expected} bytes of shape {shape}, "
            f"it holds {len(raw) - header}; fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def write_idx(path: Path, array: UInt8[np.ndarray, "..."]) -> None:
    """Write `array` as a gzipped IDX file whose bytes depend on the array alone."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, UNSIGNED_BYTE, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), compresslevel=9, mtime=0))


def _read_bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path} is damaged, its gzip data ends early or is corrupt ({error})"
        ) from error
