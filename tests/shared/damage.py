"""Ways in which a file on a disk goes bad."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Damage(NamedTuple):
    """What is done to the file `name` of a folder: delete it, cut it at `place`, or flip a bit."""

    name: str
    how: str
    place: int = 0


def damages(folder: Path, flips: int, seed: int = 0) -> Iterator[Damage]:
    """Each file deleted, emptied, cut in half and by one byte, and `flips` single bits flipped.

    The bits are spread evenly over all files together, and each file gets at least two.
    """
    numbers = np.random.default_rng(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    total = sum(path.stat().st_size for path in files)
    for path in files:
        name, size = str(path.relative_to(folder)), path.stat().st_size
        yield Damage(name, "delete")
        yield from (Damage(name, "cut", place) for place in {0, size // 2, size - 1})
        count = min(8 * size, max(2, flips * size // total))
        for bit in numbers.choice(8 * size, count, replace=False):
            yield Damage(name, "flip", int(bit))


def damaged(folder: Path, copy: Path, damage: Damage) -> Path:
    """A copy of `folder` with `damage` done to it, in place of what `copy` was."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    path = copy / damage.name
    data = bytearray(path.read_bytes())
    match damage.how:
        case "delete":
            path.unlink()
        case "cut":
            path.write_bytes(data[: damage.place])
        case "flip":
            data[damage.place // 8] ^= 1 << damage.place % 8
            path.write_bytes(data)
    return copy
