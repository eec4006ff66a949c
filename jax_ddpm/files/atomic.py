"""Write files atomically: they appear completely or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from jax_ddpm.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    Creates the folder if necessary. If `write` fails, `path` stays as it was. Raises UserError if
    the disk is full or cannot be written to, and if `path` is a folder or a device.
    """
    refuse_folder_or_device(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with report_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


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
