"""Which checkpoints stay on disk."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Keep(NamedTuple):
    """What stays: the newest `last` (None: all), the one of lowest loss, multiples of `every`."""

    last: int | None = None
    best: bool = False
    every: int | None = None


def choose_kept(keep: Keep, steps: Sequence[int], losses: Mapping[int, float]) -> set[int]:
    """The steps of `steps`, ascending, that stay; `losses` are those that are known.

    The newest always stays.
    """
    found = set(steps if keep.last is None else steps[-max(keep.last, 1) :])
    if keep.every is not None:
        found |= {step for step in steps if step > 0 and step % keep.every == 0}
    best = find_best(steps, losses) if keep.best else None
    return found if best is None else found | {best}


def find_best(steps: Sequence[int], losses: Mapping[int, float]) -> int | None:
    """The step of lowest loss, of equal ones the first; None if no loss is known."""
    return min((step for step in steps if step in losses), key=losses.__getitem__, default=None)
