"""The Frechet distance between two sets of features, which with Inception's features is FID."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jax_ddpm.errors import UserError

Features = Float[np.ndarray, "n d"]
Vector = Float[np.ndarray, " d"]
Matrix = Float[np.ndarray, "d d"]
Root = Float[np.ndarray, "d r"]


class Gaussian(NamedTuple):
    """The mean and covariance of features, in float64."""

    mean: Vector
    covariance: Matrix


def fit_gaussian(features: Features) -> Gaussian:
    """Compute the mean and the covariance (with n - 1) of features.

    Raises UserError for fewer than two, and for features that are not finite.
    """
    mean, centred = _center(features)
    return Gaussian(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2) (Heusel et al. 2017, Eq. 6).

    The matrix is symmetric, so that its root is real and safe, also if a covariance is singular.
    """
    return _distance_from_root(a.mean, find_root(a.covariance), b)


def distance_of_features(features: Features, reference: Gaussian) -> float:
    """The Frechet distance of features to a reference; quick for fewer features than dimensions."""
    n, d = features.shape
    if n > d:
        return frechet_distance(fit_gaussian(features), reference)
    mean, centred = _center(features)
    return _distance_from_root(mean, centred.T / np.sqrt(n - 1), reference)


def find_root(covariance: Matrix) -> Root:
    """Find a thin matrix R with R R^T = `covariance`, without the directions of no variance."""
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    kept = values > max(values[-1], 0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def _center(features: Features) -> tuple[Vector, Features]:
    features = np.asarray(features, np.float64)
    if len(features) < 2:
        raise UserError(f"{len(features)} images are too few for a covariance: use at least 2")
    if not np.isfinite(features).all():
        raise UserError("the features of some images are not finite")
    mean = features.mean(0)
    return mean, features - mean


def _distance_from_root(mean: Vector, root: Root, other: Gaussian) -> float:
    """The distance from a Gaussian whose covariance is root root^T."""
    difference = mean - other.mean
    product = root.T @ other.covariance @ root
    between = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    trace = (root**2).sum() + np.trace(other.covariance)
    return float(difference @ difference + trace - 2 * between)
