"""Read untrusted files without running code and in bounded memory, or refuse them."""

import errno
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

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


def open_regular(path: Path, inside: Path | None = None) -> BinaryIO:
    """Open a regular file for reading, without waiting for one that is not.

    With the folder `inside`, links must stay in it. Raises UserError for a pipe, a device, a folder
    and a link that leaves the folder, and OSError if there is no file or it cannot be opened.
    """
    target = path if inside is None else follow_inside(path, inside)
    descriptor = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is {name_kind(target)}, but it must be a regular file")
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, max_bytes: int, inside: Path | None = None) -> bytes:
    """Read a regular file of at most `max_bytes`. Raises the errors that `open_regular` does."""
    with open_regular(path, inside) as file:
        fits = os.fstat(file.fileno()).st_size <= max_bytes  # /proc and the like say 0
        data = file.read(max_bytes + 1) if fits else b""
    if not fits or len(data) > max_bytes:
        raise UserError(f"{path} has more than {max_bytes:,} bytes")
    return data


def require_regular(path: Path, inside: Path | None = None) -> None:
    """Raise UserError unless `path` is a regular file that can be read, as in `open_regular`.

    Call it before a library opens the file itself.
    """
    try:
        open_regular(path, inside).close()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {explain(error)}") from error


def follow_inside(path: Path, folder: Path, way_out: str = "copy the file into it") -> Path:
    """The file that `path` stands for. Raises UserError for a link that leaves `folder`."""
    try:
        target = path.resolve(strict=True)
    except (RuntimeError, OSError) as error:  # Python reports a loop of links as either
        if isinstance(error, OSError) and error.errno != errno.ELOOP:
            raise
        raise UserError(f"{path} is a link that leads to itself") from error
    if not target.is_relative_to(find_root(folder)):
        raise UserError(f"{path} is a link out of its folder, to {target}: {way_out}")
    return target


def find_root(folder: Path) -> Path:
    """The folder that the links in `folder` may not leave: itself, without links.

    In the cache of Hugging Face, the files of a snapshot are links to blobs/ beside snapshots/.
    """
    home = folder.resolve()
    for parent in (home, *home.parents):
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            return parent.parent
    return home


def name_kind(path: Path) -> str:
    """What `path` is, as part of a sentence."""
    if path.is_dir():
        return "a folder"
    return "a device" if path.is_block_device() or path.is_char_device() else "a pipe or socket"


def require_plain_tree(folder: Path, allowed: Sequence[Path] = ()) -> None:
    """Raise UserError unless `folder` holds only regular files, folders, and links that stay in it.

    Looks at every level, and follows no links. The links `allowed` may lead elsewhere. Raises
    OSError for a folder that cannot be read.
    """
    home = folder.resolve()
    for entry in _walk(folder):
        if entry.is_symlink() and Path(entry.path) in allowed:
            continue
        if entry.is_symlink():
            _require_inward(Path(entry.path), home)
        elif not entry.is_file() and not entry.is_dir():
            raise UserError(f"{entry.path} is {name_kind(Path(entry.path))}: remove it")


def _walk(folder: Path) -> Iterator["os.DirEntry[str]"]:
    waiting = [os.fspath(folder)]
    while waiting:
        with suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:  # a running job may remove a checkpoint meanwhile
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def _require_inward(path: Path, home: Path) -> None:
    try:
        target = path.resolve(strict=path.exists())
    except (RuntimeError, OSError) as error:  # a loop of links raises either
        raise UserError(f"{path} is a link that leads to itself: remove it") from error
    if not target.is_relative_to(home):
        raise UserError(
            f"{path} is a link out of the run folder, to {target}: copy the files into it (the run "
            "folder itself may be a link)"
        )


def read_json(path: Path, what: str, *, infinite: bool = False) -> Any:
    """Read the JSON value in `path`; error messages call the file `what`.

    Raises UserError for more than 16 MiB, and for anything but strict JSON (no NaN, no Infinity
    unless numbers may be `infinite`).
    """
    try:
        read = _read_infinity if infinite else _refuse_constant
        return json.loads(read_bounded(path, MAX_JSON).decode("utf-8"), parse_constant=read)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}: expected {what}") from error
    except UserError:
        raise
    except (ValueError, RecursionError, OSError) as error:
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


def require_no_program(path: Path) -> None:
    """Raise UserError for an archive of TorchScript, which holds a program beside the weights."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        places = {name.partition("/")[2] for name in file.namelist()}
    if "constants.pkl" in places or any(place.startswith("code/") for place in places):
        raise UserError(
            f"{path} is an archive of TorchScript, which holds a program, and is refused: load it "
            "with torch.jit.load where you trust it, and give what "
            "torch.save(model.state_dict(), FILE) writes"
        )


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
