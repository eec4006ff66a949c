"""Write files and folders atomically: they appear completely or not at all.

Temporary names cannot be guessed, and are made with O_EXCL, so a link that somebody has left in the
folder is never followed.
"""

import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from jax_ddpm.errors import UserError

NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_NAME = 40  # characters of a name that its temporary one repeats
_unfinished: set[Path] = set()  # temporary files and folders


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    Creates the folder if necessary. If `write` fails, `path` stays as it was. Raises UserError if
    the disk is full or cannot be written to, and if `path` is a folder or a device.
    """
    refuse_folder_or_device(path)
    temporary = name_temporary(path)
    with report_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | NEW, 0o666))
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            _unfinished.discard(temporary)


def remove_unfinished() -> None:
    """Remove the files and folders that are being written, before the process ends at once."""
    for path in list(_unfinished):
        with suppress(OSError):
            remove(path)


@contextmanager
def write_folder_atomically(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, which must not exist, and rename it to `path` at the end.

    Removes the folder if the context is left with an error.
    """
    temporary = name_temporary(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _unfinished.discard(temporary)


def name_temporary(path: Path) -> Path:
    """A hidden name beside `path` that nobody can guess, and that `is_leftover` recognises."""
    temporary = path.with_name(f".{path.name[:MAX_NAME]}.{secrets.token_hex(8)}.tmp")
    _unfinished.add(temporary)
    return temporary


def open_new(path: Path) -> BinaryIO:
    """Create the file `path` and open it for writing. Raises FileExistsError also for a link."""
    return os.fdopen(os.open(path, os.O_WRONLY | NEW, 0o666), "wb")


def open_to_append(path: Path) -> BinaryIO:
    """Open `path` to write at its end. Raises OSError for a link, a pipe or a device."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path.name} is not a regular file")
    return os.fdopen(descriptor, "ab")


def remove(path: Path) -> None:
    """Remove a file, a link (not what it points to) or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Raise UserError unless `path` can be written. Call it before long work, not after.

    Creates a temporary file in the folder, or in the nearest parent that exists, and removes it.
    """
    refuse_folder_or_device(path)
    with report_disk_errors(path):
        folder = next(folder for folder in path.parents if folder.exists())
        with TemporaryFile(dir=folder):
            pass


def refuse_folder_or_device(path: Path) -> None:
    """Raise UserError for a folder, and for a device or pipe, which writing would replace."""
    try:
        other = path.exists() and not path.is_file()
    except OSError:  # writing the file will report what is wrong
        return
    if other:
        kind = "a folder" if path.is_dir() else "not a file but a device or pipe"
        raise UserError(f"{path} is {kind}: give the name of a file")


@contextmanager
def report_disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a UserError that names `path`, the file that was being written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror or error}): check that its folder "
            "can be written to and that there is space on the disk"
        ) from error


def is_leftover(path: Path) -> bool:
    """Whether `path` is a temporary file that `write_atomically` left when it was killed."""
    return path.name.startswith(".") and path.suffix == ".tmp"
