"""Damage to files on a disk."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Damage(NamedTuple):
    """Damage to the file `name` of a folder: delete it, cut it at `place`, or flip a bit."""

    name: str
    how: str
    place: int = 0


def list_damages(folder: Path, flips: int, seed: int = 0) -> Iterator[Damage]:
    """List ways to delete, empty, halve and shorten each file, and to flip `flips` single bits.

    The bits are spread evenly over all files; each file gets at least two.
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


def copy_and_damage(folder: Path, copy: Path, damage: Damage) -> Path:
    """Copy `folder` to `copy`, which is replaced, and damage the copy."""
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
