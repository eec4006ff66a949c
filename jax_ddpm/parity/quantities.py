"""What the report holds: a quantity computed in two frameworks, and how far the two are apart."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_ddpm.parity.measure import Difference, difference, peak_of, side_by_side
from jax_ddpm.parity.tolerances import TOLERANCES


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
    float64: Measure
    float32: Measure

    @property
    def ok(self) -> bool:
        """Whether it is within tolerance in both precisions."""
        return self.float64.ok and self.float32.ok


class Part(NamedTuple):
    """A chapter of the report; `pairs(dtype, seed)` yields the same quantities in any precision."""

    name: str
    title: str
    text: str
    against: str
    pairs: Callable[[str, int], Iterator[Pair]]
    slack: float = 0.0
    """How many times PyTorch's own rounding a difference may be, where that is more than the
    tolerance: some networks amplify rounding."""


def measure_part(part: Part, seed: int) -> Iterator[Quantity]:
    """Compute a part in both precisions, side by side, and compare."""
    runs = [part.pairs(dtype, seed) for dtype in ("float64", "float32")]
    for double, single in zip(*runs, strict=True):
        rounding = _rounding(single.theirs, double.theirs, double.peak or peak_of(double.theirs))
        allowed = part.slack * rounding
        yield Quantity(
            part.name, double.group, double.what, part.against, double.tolerance, double.along,
            measure(double, "float64", None, allowed),
            measure(single, "float32", rounding, allowed),
        )  # fmt: skip


def _rounding(single: Any, double: Any, peak: float) -> float:
    """How far a float32 result is from the same in float64, relative to the latter's peak."""
    leaves = zip(jax.tree.leaves(single), jax.tree.leaves(double), strict=True)
    pairs = [(np.asarray(a, np.float64), np.asarray(b)) for a, b in leaves]
    return max(difference(a, b, peak).relative for a, b in pairs)


def measure(pair: Pair, dtype: str, rounding: float | None, allowed: float) -> Measure:
    """Compare the two sides of `pair`; differences up to `allowed` in float32 are accepted."""
    peak = pair.peak or peak_of(pair.theirs)
    leaves = list(side_by_side(pair.ours, pair.theirs, dtype))
    allowed *= float(np.finfo(dtype).eps / np.finfo(np.float32).eps)
    return Measure(
        *_worst([difference(a, b, peak) for _, a, b in leaves]),
        tolerance=max(getattr(TOLERANCES[pair.tolerance], dtype), allowed),
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
