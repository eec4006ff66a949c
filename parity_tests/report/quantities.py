"""What the report holds: a quantity computed in two frameworks, and how far the two are apart."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from measure import Difference, difference, peak_of, side_by_side
from tolerances import TOLERANCES

DTYPES = ("float64", "float32")


class Pair(NamedTuple):
    """One quantity in one precision: an array or a tree from each framework."""

    group: str
    """What it belongs to within its part."""
    what: str
    tolerance: str
    """Which entry of TOLERANCES it is held to."""
    ours: Any
    theirs: Any
    along: str = ""
    """What the first axis counts, if the difference is to be drawn along it."""
    peak: float | None = None
    """The size that differences are relative to, if not the largest entry of `theirs`."""


@dataclass(frozen=True)
class Measure:
    """How far the two are apart in one precision."""

    absolute: float
    relative: float
    ulp: float | None
    tolerance: float
    """For `relative`."""
    rounding: float | None
    """In float32: how far PyTorch's result is from its own in float64, relative."""
    arrays: int
    numbers: int
    curve: list[float] | None

    @property
    def ok(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.relative <= self.tolerance


@dataclass(frozen=True)
class Quantity:
    """One line of the report."""

    part: str
    group: str
    what: str
    against: str
    tolerance_of: str
    along: str
    float64: Measure | None
    float32: Measure | None

    @property
    def measures(self) -> list[Measure]:
        """Of the precisions in which it was compared."""
        return [m for m in (self.float64, self.float32) if m is not None]

    @property
    def ok(self) -> bool:
        """Whether it is within tolerance in both precisions."""
        return all(measure.ok for measure in self.measures)


class Part(NamedTuple):
    """A chapter of the report; `pairs(dtype, seed)` yields the same quantities in any precision."""

    name: str
    title: str
    text: str
    against: str
    pairs: Callable[[str, int], Iterator[Pair]]
    dtypes: tuple[str, ...] = DTYPES


def measure_part(part: Part, seed: int) -> Iterator[Quantity]:
    """Compute a part in each of its precisions, side by side, and compare."""
    runs = [part.pairs(dtype, seed) for dtype in part.dtypes]
    for pairs in zip(*runs, strict=True):
        by_dtype = dict(zip(part.dtypes, pairs, strict=True))
        exact = by_dtype.get("float64")
        measures = {dtype: measure(pair, dtype, exact) for dtype, pair in by_dtype.items()}
        first = pairs[0]
        yield Quantity(
            part.name, first.group, first.what, part.against, first.tolerance, first.along,
            measures.get("float64"), measures.get("float32"),
        )  # fmt: skip


def measure(pair: Pair, dtype: str, exact: Pair | None) -> Measure:
    """Compare the two sides of `pair`; `exact` is the same quantity in float64."""
    peak = pair.peak or peak_of(pair.theirs)
    leaves = list(side_by_side(pair.ours, pair.theirs, dtype))
    worst = _worst([difference(a, b, peak) for _, a, b in leaves])
    rounding = None
    if dtype == "float32" and exact is not None:
        theirs = jax.tree.leaves(exact.theirs)
        cast = [
            (b.astype(np.float64), np.asarray(c))
            for (_, _, b), c in zip(leaves, theirs, strict=True)
        ]
        rounding = max(difference(b, c, peak).relative for b, c in cast)
    return Measure(
        *worst,
        tolerance=getattr(TOLERANCES[pair.tolerance], dtype),
        rounding=rounding,
        arrays=len(leaves),
        numbers=sum(b.size for _, _, b in leaves),
        curve=_curve([(a, b) for _, a, b in leaves], peak) if pair.along else None,
    )


def _worst(differences: list[Difference]) -> Difference:
    absolute, relative, ulps = zip(*differences, strict=True)
    counted = [ulp for ulp in ulps if ulp is not None]
    return Difference(max(absolute), max(relative), max(counted) if counted else None)


def _curve(leaves: list[tuple[np.ndarray, np.ndarray]], peak: float) -> list[float]:
    """The relative difference at each entry of the first axis, the largest of all leaves."""
    steps = [
        [difference(x, y, peak).relative for x, y in zip(a, b, strict=True)] for a, b in leaves
    ]
    return [max(values) for values in zip(*steps, strict=True)]
