"""Hold a run folder: one writer at a time, which notices if the folder is moved or removed."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import report_disk_errors

LOCK = "lock"


@dataclass
class Held:
    """A run folder that this process has opened."""

    folder: Path
    directory: int
    """Descriptor of the open folder."""
    lock: int | None = None
    """Descriptor of the locked file; None for a process that does not write."""

    def check(self) -> None:
        """Raise UserError if the name of the folder now stands for another folder, or for none.

        If only the lock was removed, lock it again. Raises UserError if another process has it.
        """
        if not is_same(self.directory, self.folder):
            raise UserError(
                f"{self.folder} was moved, removed or replaced while training, so training has "
                "ended: move it back or give its new place with --run, then run the same command "
                "again to continue from its newest checkpoint"
            )
        if self.lock is not None and not is_same(self.lock, self.folder / LOCK):
            os.close(self.lock)
            self.lock = None
            self.lock = lock_file(self.folder)

    def close(self) -> None:
        """Release the folder."""
        for descriptor in (self.lock, self.directory):
            if descriptor is not None:
                os.close(descriptor)


def is_same(descriptor: int, path: Path) -> bool:
    """Whether `path` stands for the file or folder that is open as `descriptor`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:  # nothing is there, or a link to itself, or a file in place of a folder above
        return False


@contextmanager
def lock_folder(folder: Path) -> Iterator[Held]:
    """Hold the lock of a run folder, and make the folder if necessary.

    If this process is killed, the lock is released. It works between processes on one machine, and
    over NFS with lock support. Raises UserError if another process is training there, naming it.
    """
    with report_disk_errors(folder / LOCK):
        folder.mkdir(parents=True, exist_ok=True)
    with hold_folder(folder) as held:
        # Locking the folder too keeps out a second writer if somebody removes the file. Some file
        # systems, such as NFS, do not lock folders.
        with suppress(OSError), refuse_second(folder):
            fcntl.flock(held.directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.lock = lock_file(folder)
        yield held


@contextmanager
def hold_folder(folder: Path) -> Iterator[Held]:
    """Open a run folder that exists, without locking it."""
    with report_disk_errors(folder):
        held = Held(folder, os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    with ExitStack() as stack:
        stack.callback(held.close)
        yield held


def lock_file(folder: Path) -> int:
    """Lock the file in `folder` and write into it who holds it; return its descriptor.

    Raises UserError if another process holds it.
    """
    with report_disk_errors(folder / LOCK):
        # If the lock were a link, another file would be emptied.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        lock = os.open(folder / LOCK, flags, 0o666)
    try:
        with refuse_second(folder):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with report_disk_errors(folder / LOCK):
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except UserError:
        os.close(lock)
        raise
    return lock


@contextmanager
def refuse_second(folder: Path) -> Iterator[None]:
    """Turn the error of a lock that is taken into a UserError that names who holds it."""
    try:
        yield
    except BlockingIOError as error:
        raise UserError(
            f"another process is training in {folder} ({read_holder(folder)}): "
            "wait for it, or choose another folder with --run"
        ) from error


def read_holder(folder: Path) -> str:
    """Read which process holds the lock of `folder`."""
    with suppress(OSError):
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return os.read(lock, 200).decode(errors="replace").strip() or "it does not say which"
        finally:
            os.close(lock)
    return "its lock was removed"
