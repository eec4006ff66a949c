import math

import numpy as np
import pytest

from jax_ddpm.process.distances import distances, energy_distance


def draw_normal(seed, n, d, mean=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + mean


def test_distances_cover_all_pairs():
    x, y = draw_normal(0, 5, 3), draw_normal(1, 4, 3)
    expected = np.linalg.norm(x[:, None] - y[None], axis=-1)
    np.testing.assert_allclose(distances(x, y), expected, rtol=0, atol=1e-14)  # measured: 4e-16


def test_the_distance_equals_one_computed_by_hand():
    x, y = np.array([[0.0], [1.0]]), np.array([[2.0], [4.0]])
    # Means of 2, 4, 1, 3; of 1; of 2.
    assert energy_distance(x, y) == pytest.approx(2 * 2.5 - 1 - 2, abs=1e-15)


def test_the_distance_is_unbiased_for_samples_of_one_distribution():
    found = [
        energy_distance(draw_normal(2 * i, 20, 4), draw_normal(2 * i + 1, 30, 4))
        for i in range(200)
    ]
    # Four standard errors. Measured: 1.4 of them
    assert abs(np.mean(found)) < 4 * np.std(found) / 200**0.5
    assert min(found) < 0  # an estimate that is always positive would be biased


def test_the_distance_of_two_normal_distributions_equals_the_formula():
    """E|N(m, 2)| = 2/sqrt(pi) exp(-m^2/4) + m erf(m/2)."""
    m = 1.5
    across = 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    expected = 2 * across - 4 / math.sqrt(math.pi)
    found = [
        energy_distance(draw_normal(2 * i, 100, 1), draw_normal(2 * i + 1, 100, 1, m))
        for i in range(100)
    ]
    # Four standard errors. Measured: 1.0 of them
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / 100**0.5


def test_two_points_are_needed():
    with pytest.raises(ValueError, match="at least 2 points are needed, got 1 and 3"):
        energy_distance(draw_normal(0, 1, 2), draw_normal(1, 3, 2))
