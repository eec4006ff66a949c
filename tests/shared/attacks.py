"""Structural attacks: what a stranger may put in the place of each file of a folder."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jax_ddpm.errors import UserError
from tests.shared.mutations import limit_time, require_clear

SECONDS, MAX_BYTES = 10, 2**30  # the most that one attack may take
HUGE = 2**33  # bytes of a file with a hole, which takes no space on the disk


class Attack(NamedTuple):
    """What is put in the place of the file `name` of a folder."""

    name: str
    kind: str


def _swap(path: Path, folder: Path) -> None:
    """Put another file of the folder in its place."""
    others = sorted(file for file in folder.rglob("*") if file.is_file() and file != path)
    if others:
        shutil.copyfile(others[hash_name(path.name) % len(others)], path)


def hash_name(name: str) -> int:
    """A number that depends on the name alone, not on the process."""
    return sum(name.encode())


def _link_out(path: Path, folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _replace(make: Callable[[Path], object]) -> Callable[[Path, Path], None]:
    def attack(path: Path, folder: Path) -> None:
        path.unlink()
        make(path)

    return attack


KINDS: dict[str, Callable[[Path, Path], None]] = {
    "missing": _replace(lambda path: None),
    "empty": lambda path, folder: os.truncate(path, 0),
    "cut": lambda path, folder: os.truncate(path, path.stat().st_size // 2),
    "swapped": _swap,
    "pipe": _replace(os.mkfifo),
    "link": _link_out,
    "device": _replace(lambda path: path.symlink_to("/dev/zero")),
    "loop": _replace(lambda path: path.symlink_to(path.name)),
    "folder": _replace(Path.mkdir),
    "unreadable": lambda path, folder: path.chmod(0),
    "huge": lambda path, folder: os.truncate(path, HUGE),
}


def list_attacks(folder: Path) -> Iterator[Attack]:
    """List every kind of attack on every file of a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield from (Attack(str(path.relative_to(folder)), kind) for kind in KINDS)


def copy_and_attack(folder: Path, copy: Path, attack: Attack) -> Path:
    """Copy `folder` to `copy`, which is replaced, and attack the copy."""
    shutil.rmtree(copy, ignore_errors=True)
    (copy.parent / "elsewhere").unlink(missing_ok=True)
    shutil.copytree(folder, copy)
    KINDS[attack.kind](copy / attack.name, copy)
    return copy


def survive(use: Callable[[], Any], attack: Attack) -> Any:
    """Return what `use` does, or None if it refuses in one sentence; in time and bounded memory."""
    before, found = reset_peak(), None
    try:
        with limit_time(SECONDS):
            found = use()
    except UserError as error:
        require_clear(error)
    except OSError as error:  # the command line makes one sentence of it
        assert error.strerror and not isinstance(error, TimeoutError), (attack, error)
    assert read_status("VmHWM") - before < MAX_BYTES, attack
    return found


def reset_peak() -> int:
    """Forget how much memory this process took at most; return how much it takes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return read_status("VmRSS")


def read_status(name: str) -> int:
    """Read one of the kernel's figures of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])
