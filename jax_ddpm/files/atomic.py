"""Files that are either whole or not there."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from jax_ddpm.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    Makes the folder if need be. If `write` fails, `path` is as it was. Raises UserError where the
    disk is full, read-only or not ours, and for a folder or a device.
    """
    require_file_or_nothing(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Raise UserError unless a file can be made in the place of `path`: before the work, not after.

    Tries it in the folder, or in the one where that would be made, and leaves nothing there.
    """
    require_file_or_nothing(path)
    with writing(path):
        folder = next(folder for folder in path.parents if folder.exists())
        with TemporaryFile(dir=folder):
            pass


def require_file_or_nothing(path: Path) -> None:
    """Raise UserError for a folder, and for a device or pipe, which a file would replace."""
    try:
        other = path.exists() and not path.is_file()
    except OSError:  # what stands in the way shows when it is written
        return
    if other:
        kind = "a folder" if path.is_dir() else "not a file but a device or pipe"
        raise UserError(f"{path} is {kind}: give the name of a file to write")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes to `path`: an error of the disk becomes a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror or error}): make sure that its folder "
            "can be written to and that there is space"
        ) from error


def is_leftover(path: Path) -> bool:
    """Whether `path` is a temporary file that a killed process left of `write_atomically`."""
    return path.name.startswith(".") and path.suffix == ".tmp"
