"""Choose which checkpoints stay on disk."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Keep(NamedTuple):
    """What to keep: the `last` newest (None: all), the best one, and multiples of `every` steps."""

    last: int | None = None
    best: bool = False
    every: int | None = None


def choose_kept(keep: Keep, steps: Sequence[int], losses: Mapping[int, float]) -> set[int]:
    """Choose which of `steps`, in ascending order, to keep; the newest always stays.

    `losses` maps steps to their loss, where it is known.
    """
    found = set(steps if keep.last is None else steps[-max(keep.last, 1) :])
    if keep.every is not None:
        found |= {step for step in steps if step > 0 and step % keep.every == 0}
    best = find_best(steps, losses) if keep.best else None
    return found if best is None else found | {best}


def find_best(steps: Sequence[int], losses: Mapping[int, float]) -> int | None:
    """Find the step with the lowest loss, the first if several; None if no loss is known."""
    return min((step for step in steps if step in losses), key=losses.__getitem__, default=None)
