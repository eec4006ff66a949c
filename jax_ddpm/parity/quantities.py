"""The content of the report: quantities computed in two frameworks, and their differences."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_ddpm.parity.measure import Difference, find_peak, measure_difference, zip_leaves
from jax_ddpm.parity.tolerances import TOLERANCES


class Pair(NamedTuple):
    """One quantity in one precision: an array or a tree from each framework."""

    group: str
    """The group within its part of the report."""
    what: str
    tolerance: str
    """The entry of TOLERANCES that applies."""
    ours: Any
    theirs: Any
    along: str = ""
    """What the first axis counts, if the report plots the difference along it."""
    peak: float | None = None
    """The value that differences are relative to; None: the largest entry of `theirs`."""


@dataclass(frozen=True)
class Measure:
    """The difference between the frameworks in one precision."""

    absolute: float
    relative: float
    ulp: float | None
    tolerance: float
    """The largest accepted value of `relative`."""
    rounding: float | None
    """In float32: the relative difference between PyTorch's float32 and float64 results."""
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
    """One part of the report, and the function that computes its quantities."""

    name: str
    title: str
    text: str
    against: str
    """The code on the PyTorch side."""
    pairs: Callable[[str, int], Iterator[Pair]]
    """`pairs(dtype, seed)` yields the same quantities for each dtype."""
    slack: float = 0.0
    """Also accept differences up to this many times PyTorch's own rounding, because some networks
    amplify rounding."""
    package: str = "torch"
    """The package that it needs, by the name to import."""


def measure_part(part: Part, seed: int) -> Iterator[Quantity]:
    """Compute a part in both precisions and compare the frameworks in each."""
    runs = [part.pairs(dtype, seed) for dtype in ("float64", "float32")]
    for double, single in zip(*runs, strict=True):
        rounding = _measure_rounding(single.theirs, double)
        allowed = part.slack * rounding
        yield Quantity(
            part=part.name,
            group=double.group,
            what=double.what,
            against=part.against,
            tolerance_of=double.tolerance,
            along=double.along,
            float64=measure_pair(double, "float64", None, allowed),
            float32=measure_pair(single, "float32", rounding, allowed),
        )


def _measure_rounding(single: Any, double: Pair) -> float:
    """Measure PyTorch's float32 result against its float64 result, relative to the latter."""
    peak = double.peak or find_peak(double.theirs)
    leaves = zip(jax.tree.leaves(single), jax.tree.leaves(double.theirs), strict=True)
    pairs = [(np.asarray(a, np.float64), np.asarray(b)) for a, b in leaves]
    return max(measure_difference(a, b, peak).relative for a, b in pairs)


def measure_pair(pair: Pair, dtype: str, rounding: float | None, allowed: float) -> Measure:
    """Compare the two sides of `pair`.

    The tolerance is at least `allowed` in float32, and proportionally smaller in float64.
    """
    peak = pair.peak or find_peak(pair.theirs)
    leaves = list(zip_leaves(pair.ours, pair.theirs, dtype))
    allowed *= float(np.finfo(dtype).eps / np.finfo(np.float32).eps)
    return Measure(
        *_find_worst([measure_difference(a, b, peak) for _, a, b in leaves]),
        tolerance=max(getattr(TOLERANCES[pair.tolerance], dtype), allowed),
        rounding=rounding,
        arrays=len(leaves),
        numbers=sum(b.size for _, _, b in leaves),
        curve=_measure_curve([(a, b) for _, a, b in leaves], peak) if pair.along else None,
    )


def _find_worst(differences: list[Difference]) -> Difference:
    absolute, relative, ulps = zip(*differences, strict=True)
    counted = [ulp for ulp in ulps if ulp is not None]
    return Difference(max(absolute), max(relative), max(counted) if counted else None)


def _measure_curve(leaves: list[tuple[np.ndarray, np.ndarray]], peak: float) -> list[float]:
    """Measure the relative difference at each entry of the first axis, over all leaves."""
    steps = [
        [measure_difference(x, y, peak).relative for x, y in zip(a, b, strict=True)]
        for a, b in leaves
    ]
    return [max(values) for values in zip(*steps, strict=True)]
