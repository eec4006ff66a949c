"""How far two arrays are apart: absolute, relative to the largest entry, in units of last place."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

# Units of last place are counted only for entries of at least this fraction of the largest one.
# Where a sum cancels to almost nothing, any rounding at all is many of them.
LARGE = 0.1


class Difference(NamedTuple):
    """The largest difference of all entries, in three units."""

    absolute: float
    """max |a - b|"""
    relative: float
    """The same over the peak, max |b|."""
    ulp: float | None
    """max |a - b| / spacing(b); None if no entry is large enough to be counted."""


def zip_leaves(ours: Any, theirs: Any, dtype: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(path, our leaf, their leaf) of two trees; AssertionError unless shapes and dtypes agree."""
    leaves, expected = tree_leaves_with_path(ours), jax.tree.leaves(theirs)
    assert len(leaves) == len(expected)
    for (path, a), b in zip(leaves, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, f"{keystr(path)}: {a.shape} is not {b.shape}"
        assert a.dtype == b.dtype == dtype, f"{keystr(path)}: {a.dtype}, {b.dtype}"
        yield keystr(path), a, b


def find_peak(tree: Any) -> float:
    """The largest finite absolute value in a tree, or 1 if that is 0.

    It is taken over the whole tree because some gradients, such as the gradient of an attention's
    key bias, are zero in theory and noise in practice.
    """
    leaves = [np.abs(leaf) for leaf in jax.tree.leaves(tree)]
    return max((float(a.max(initial=0, where=np.isfinite(a))) for a in leaves), default=0.0) or 1.0


def measure_difference(a: np.ndarray, b: np.ndarray, peak: float) -> Difference:
    """The difference between `a` and `b`, whose tree peaks at `peak`; infinite if one is NaN."""
    same = a == b  # infinities too
    gap = np.abs(np.where(same, 0, a) - np.where(same, 0, b))
    gap = np.where(np.isnan(gap), np.inf, gap)
    large = (np.abs(b) >= LARGE * peak) & np.isfinite(b)
    steps = gap[large] / np.spacing(np.abs(b[large]))
    absolute = float(gap.max(initial=0))
    return Difference(absolute, absolute / peak, float(steps.max()) if steps.size else None)
