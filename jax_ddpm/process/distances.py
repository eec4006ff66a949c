"""Distances between two sets of images."""

import numpy as np
from jaxtyping import Float

from jax_ddpm.errors import UserError

Points = Float[np.ndarray, "n d"]
Others = Float[np.ndarray, "m d"]


def energy_distance(x: Points, y: Others) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| without bias (Szekely & Rizzo 2013, Eq. 2.1).

    Its expectation is zero for two samples of the same distribution and positive for samples of two
    that differ. Raises UserError for fewer than two points in either.
    """
    if len(x) < 2 or len(y) < 2:
        raise UserError(f"two sets of at least 2 points are needed, got {len(x)} and {len(y)}")
    within = sum(distances(a, a).sum() / (len(a) * (len(a) - 1)) for a in (x, y))
    return float(2 * distances(x, y).mean() - within)


def distances(x: Points, y: Others) -> Float[np.ndarray, "n m"]:
    """|x_i - y_j| for all pairs, in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return np.sqrt(np.maximum(squared, 0))
