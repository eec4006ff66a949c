"""Measure the difference of arrays: absolute, relative to the largest entry, and in ULPs."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

# ULPs (units in the last place) are counted only for entries of at least this fraction of the
# largest one. If a sum cancels to almost zero, the slightest rounding is many ULPs.
LARGE = 0.1


class Difference(NamedTuple):
    """The largest difference over all entries, in three units."""

    absolute: float
    """max |a - b|"""
    relative: float
    """max |a - b| / peak, where the peak is max |b| by default."""
    ulp: float | None
    """max |a - b| / spacing(b); None if no entry is large enough to count."""


def zip_leaves(ours: Any, theirs: Any, dtype: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (path, our leaf, their leaf) of two trees. Asserts that shapes and dtypes agree."""
    leaves, expected = tree_leaves_with_path(ours), jax.tree.leaves(theirs)
    assert len(leaves) == len(expected)
    for (path, a), b in zip(leaves, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, f"{keystr(path)}: {a.shape} is not {b.shape}"
        assert a.dtype == b.dtype == dtype, f"{keystr(path)}: {a.dtype}, {b.dtype}"
        yield keystr(path), a, b


def find_peak(tree: Any) -> float:
    """Find the largest finite absolute value in a tree; 1 if that is 0.

    It is the largest of the whole tree, because some gradients, such as the gradient of an
    attention's key bias, are zero in theory and noise in practice.
    """
    leaves = [np.abs(leaf) for leaf in jax.tree.leaves(tree)]
    return max((float(a.max(initial=0, where=np.isfinite(a))) for a in leaves), default=0.0) or 1.0


def measure_difference(a: np.ndarray, b: np.ndarray, peak: float) -> Difference:
    """Measure `a` against `b`, whose tree has the peak `peak`; infinite if one is NaN."""
    same = a == b  # also true of equal infinities
    gap = np.abs(np.where(same, 0, a) - np.where(same, 0, b))
    gap = np.where(np.isnan(gap), np.inf, gap)
    large = (np.abs(b) >= LARGE * peak) & np.isfinite(b)
    steps = gap[large] / np.spacing(np.abs(b[large]))
    absolute = float(gap.max(initial=0))
    return Difference(absolute, absolute / peak, float(steps.max()) if steps.size else None)
