"""How far two arrays are apart: absolute, relative to the largest entry, in units of last place."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

# Units of last place are counted where an entry is at least this fraction of the largest one.
# Next to a sum that cancels to almost nothing, any rounding at all is many of them.
LARGE = 0.1


class Difference(NamedTuple):
    """The largest of all entries: |a - b|, that over the peak max|b|, and that over spacing(b).

    The last is None where no entry is large enough to be counted.
    """

    absolute: float
    relative: float
    ulp: float | None


def side_by_side(
    ours: Any, theirs: Any, dtype: str
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(path, our leaf, their leaf) of two trees; AssertionError unless shapes and dtypes agree."""
    leaves, expected = tree_leaves_with_path(ours), jax.tree.leaves(theirs)
    assert len(leaves) == len(expected)
    for (path, a), b in zip(leaves, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, f"{keystr(path)}: {a.shape} is not {b.shape}"
        assert a.dtype == b.dtype == dtype, f"{keystr(path)}: {a.dtype}, {b.dtype}"
        yield keystr(path), a, b


def peak_of(tree: Any) -> float:
    """The largest finite absolute value of a tree, 1 where that is 0.

    Of a whole tree, because some gradients are exactly zero in theory (that of an attention's key
    bias) and noise in practice.
    """
    leaves = [np.abs(leaf) for leaf in jax.tree.leaves(tree)]
    return max((float(a.max(initial=0, where=np.isfinite(a))) for a in leaves), default=0.0) or 1.0


def difference(a: np.ndarray, b: np.ndarray, peak: float) -> Difference:
    """How far `a` is from `b`, whose tree peaks at `peak`; infinitely far where one is NaN."""
    same = a == b  # infinities too
    gap = np.abs(np.where(same, 0, a) - np.where(same, 0, b))
    gap = np.where(np.isnan(gap), np.inf, gap)
    large = (np.abs(b) >= LARGE * peak) & np.isfinite(b)
    steps = gap[large] / np.spacing(np.abs(b[large]))
    absolute = float(gap.max(initial=0))
    return Difference(absolute, absolute / peak, float(steps.max()) if steps.size else None)
