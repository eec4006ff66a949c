"""Precision, recall, density and coverage, and nearest neighbours, in a space of features."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_ddpm.errors import UserError

Features = Float[np.ndarray, "n d"]
Others = Float[np.ndarray, "m d"]
CHUNK = 1024  # rows of a matrix of distances that are in memory at once
PRECISION_NEIGHBOURS = 3  # Kynkaanniemi et al. 2019
DENSITY_NEIGHBOURS = 5  # Naeem et al. 2020


class PrecisionRecall(NamedTuple):
    """Shares of images inside the other set's manifold (Kynkaanniemi et al. 2019, Eq. 1)."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """The same question with counts that outliers do not inflate (Naeem et al. 2020, Eq. 4, 6)."""

    density: float
    coverage: float


class Neighbours(NamedTuple):
    """The nearest images of another set, nearest first."""

    indices: Int[np.ndarray, "n k"]
    distances: Float[np.ndarray, "n k"]


def precision_and_recall(
    drawn: Features, real: Others, *, neighbours: int = PRECISION_NEIGHBOURS
) -> PrecisionRecall:
    """Compute precision and recall: balls reach to the k-th neighbour in the same set."""
    real_radii, drawn_radii = measure_radii(real, neighbours), measure_radii(drawn, neighbours)
    inside_real = np.concatenate([(d <= real_radii).any(1) for d in distance_rows(drawn, real)])
    inside_drawn = np.concatenate([(d <= drawn_radii).any(1) for d in distance_rows(real, drawn)])
    return PrecisionRecall(float(inside_real.mean()), float(inside_drawn.mean()))


def density_and_coverage(
    drawn: Features, real: Others, *, neighbours: int = DENSITY_NEIGHBOURS
) -> DensityCoverage:
    """Compute density and coverage, with balls around the real images only."""
    radii = measure_radii(real, neighbours)
    hits, covered = 0, np.zeros(len(real), bool)
    for distances in distance_rows(drawn, real):
        inside: Bool[np.ndarray, "c m"] = distances < radii
        hits += int(inside.sum())
        covered |= inside.any(0)
    return DensityCoverage(hits / (neighbours * len(drawn)), float(covered.mean()))


def measure_radii(points: Features, neighbours: int) -> Float[np.ndarray, " n"]:
    """The distance from each point to its k-th neighbour in the same set."""
    if len(points) <= neighbours:
        raise UserError(f"{len(points)} images are too few: use more than {neighbours}")
    rows = distance_rows(points, points)
    return np.concatenate([np.partition(row, neighbours, 1)[:, neighbours] for row in rows])


def find_nearest(points: Features, others: Others, num: int) -> Neighbours:
    """Find the `num` nearest of `others` for each point."""
    found = []
    for distances in distance_rows(points, others):
        indices = np.argsort(distances, axis=1, kind="stable")[:, :num]
        found.append(Neighbours(indices, np.take_along_axis(distances, indices, 1)))
    return Neighbours(*map(np.concatenate, zip(*found, strict=True)))


def distance_rows(points: Features, others: Others) -> Iterator[Float[np.ndarray, "c m"]]:
    """Yield the Euclidean distances from a chunk of points to all others; 0 from a point to itself.

    They are computed in float64, because a difference of large squares loses digits.
    """
    same = points is others
    points, others = points.astype(np.float64), others.astype(np.float64)
    squares = (others**2).sum(1)
    for first in range(0, len(points), CHUNK):
        chunk = points[first : first + CHUNK]
        squared = (chunk**2).sum(1)[:, None] + squares[None] - 2 * chunk @ others.T
        if same:
            rows = np.arange(len(chunk))
            squared[rows, first + rows] = 0
        yield np.sqrt(np.maximum(squared, 0))
