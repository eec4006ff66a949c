"""Read untrusted files without running code and in bounded memory, or refuse them."""

import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_ddpm.errors import UserError

# How many times larger a file may be in memory than on disk. Weights barely compress; pictures and
# masks compress by a factor of less than 20.
EXPANSION = 100
ALWAYS_ALLOWED = 2**26
MAX_JSON = 2**24
MAX_ENTRIES = 100_000


def require_bounded(num_bytes: int, path: Path) -> None:
    """Raise UserError if the file or folder `path` would take far more bytes than it has on disk.

    64 MiB are always allowed, and beyond that a hundred times its size.
    """
    files = path.rglob("*") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    if num_bytes > max(ALWAYS_ALLOWED, EXPANSION * size):
        raise UserError(
            f"{path} has {size:,} bytes and would take {num_bytes:,} in memory, so it is refused "
            "as a decompression bomb: if you trust it, store it uncompressed"
        )


def read_json(path: Path, what: str, *, infinite: bool = False) -> Any:
    """Read the JSON value in `path`; error messages call the file `what`.

    Raises UserError for more than 16 MiB, and for anything but strict JSON (no NaN, no Infinity
    unless numbers may be `infinite`).
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise UserError(f"{path} has more than {MAX_JSON:,} bytes: it cannot be {what}")
        read = _read_infinity if infinite else _refuse_constant
        return json.loads(path.read_text("utf-8"), parse_constant=read)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}: expected {what}") from error
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not {what}: {explain(error)}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


def _read_infinity(name: str) -> float:
    return _refuse_constant(name) if name == "NaN" else float(name)


def explain(error: BaseException) -> str:
    """The message of a library's error as part of a sentence, or its type if it has no message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays in an .npz file, by name.

    Raises UserError for a damaged file, for arrays of objects, and for a file that would unpack to
    more than `require_bounded` allows.
    """
    try:
        with zipfile.ZipFile(path) as file:
            _require_consistent(file, path)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds of errors
        raise UserError(f"{path} is not a complete .npz file: {explain(error)}") from error


def _require_consistent(file: zipfile.ZipFile, path: Path) -> None:
    """Raise ValueError unless every member is a plain array of the size in the directory."""
    members = file.infolist()
    if len(members) > MAX_ENTRIES or len({m.filename for m in members}) < len(members):
        raise ValueError(f"it has {len(members)} entries: too many, or two of the same name")
    require_bounded(sum(member.file_size for member in members), path)
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename} is compressed in a way that NumPy never uses")
        if not member.filename.endswith(".npy"):
            raise ValueError(f"{member.filename} is not an array")
        with file.open(member) as stream:
            shape, _, dtype = read_npy_header(stream)
            announced = math.prod(shape) * dtype.itemsize
            held = member.file_size - stream.tell()
            if announced != held:
                name = f"{member.filename} of shape {shape}"
                raise ValueError(f"{name} announces {announced:,} bytes, but holds {held:,}")


def read_npy_header(stream: Any) -> tuple[Sequence[int], bool, np.dtype]:
    """Read (shape, whether in Fortran order, dtype), and leave `stream` where the data begins.

    Raises ValueError for anything but an array of numbers, booleans or fixed-length strings.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format is unknown")
    formats = np.lib.format
    read = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which could run code when they are read")
    if dtype.itemsize == 0 or any(n < 0 for n in shape):
        raise ValueError(f"no array has shape {shape} and dtype {dtype}")
    return shape, fortran, dtype
