"""The IDX format of MNIST and Fashion-MNIST (yann.lecun.com/exdb/mnist): unsigned bytes only."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import require_bounded

UNSIGNED_BYTE = 0x08
MAX_DIMS = 8
PIECE = 2**20


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Read the array in an IDX file, plain or gzipped.

    Raises UserError unless the file holds unsigned bytes in IDX format, exactly as many as its
    header announces. Never reads much more than that.
    """
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if gzipped else path.open("rb") as stream:
            return _read_array(stream, path, gzipped)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path} is damaged: its gzip data end early or are corrupt ({error})"
        ) from error


def _read_array(stream: Any, path: Path, gzipped: bool) -> UInt8[np.ndarray, "..."]:
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] != UNSIGNED_BYTE:
        raise UserError(
            f"{path} is not an IDX file of unsigned bytes: its first bytes are {start!r}"
        )
    num_dims = start[3]
    if not 1 <= num_dims <= MAX_DIMS:
        raise UserError(
            f"{path} is not an IDX file of images or labels: it has {num_dims} dimensions"
        )
    sizes = stream.read(4 * num_dims)
    if len(sizes) < 4 * num_dims:
        raise UserError(f"{path} is truncated: it ends inside its {4 + 4 * num_dims}-byte header")
    shape = struct.unpack(f">{num_dims}I", sizes)
    expected = math.prod(shape)
    if gzipped:
        require_bounded(expected, path)
    found = _read_at_most(stream, expected + 1)
    if len(found) != expected:
        holds = "more" if len(found) > expected else str(len(found))
        raise UserError(
            f"{path} is damaged: its header announces {expected} bytes of shape {shape}, "
            f"but it holds {holds}; download it again"
        )
    if math.prod(max(n, 1) for n in shape) > np.iinfo(np.intp).max:  # no bytes, but too large
        raise UserError(f"{path} is damaged: its header announces the impossible shape {shape}")
    array = np.frombuffer(found, np.uint8).reshape(shape)
    array.flags.writeable = False
    return array


def _read_at_most(stream: Any, count: int) -> bytearray:
    """Read up to `count` bytes, in pieces, because a damaged header may announce far too many."""
    found = bytearray()
    while len(found) < count and (piece := stream.read(min(PIECE, count - len(found)))):
        found += piece
    return found


def write_idx(path: Path, array: UInt8[np.ndarray, "..."]) -> None:
    """Write `array` as a gzipped IDX file. The same array gives the same bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, UNSIGNED_BYTE, array.ndim, *array.shape)
    data = gzip.compress(header + array.tobytes(), compresslevel=9, mtime=0)
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
