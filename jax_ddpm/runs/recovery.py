"""Restore the configuration of a run from its newest checkpoint, which holds a sealed copy."""

from functools import cache
from pathlib import Path
from typing import Any

from jax_ddpm.errors import UserError

MAX_STEP = 2**31 - 1  # of a state, and of what processes can agree on
COPIED = ("format", "image_shape", "imported_from", "images", "config")


def find_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder of checkpoints, ascending, going by their names."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    steps = {int(name) for name in names if name.isascii() and name.isdigit()}
    return sorted(step for step in steps if str(step) in names and step <= MAX_STEP)


def find_newest(checkpoints: Path) -> int:
    """The step of the newest checkpoint whose description is intact; 0 without any."""
    for step in reversed(find_steps(checkpoints)):
        if read_description(checkpoints / str(step)) is not None:
            return step
    return 0


def read_description(path: Path) -> dict[str, Any] | None:
    """Read the description of a checkpoint; None if it is not intact."""
    from jax_ddpm.runs import stored  # imports Orbax, which takes a second

    try:
        return stored.describe(path)
    except UserError:
        return None


def find_copy(checkpoints: Path) -> tuple[int, dict[str, Any]] | None:
    """Find the configuration in the newest checkpoint whose description is intact.

    Returns its step and what `describe` wrote into it; None if there is none.
    """
    for step in reversed(find_steps(checkpoints)):
        about = read_description(checkpoints / str(step)) or {}
        if "config" in about and "image_shape" in about:
            return step, {name: about[name] for name in COPIED if name in about}
    return None


@cache
def warn_once(message: str) -> None:
    """Print `message` on stderr, the first time that it is given."""
    from jax_ddpm.runs.stored import warn

    warn(message)
