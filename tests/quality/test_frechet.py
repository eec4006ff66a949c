import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.quality.frechet import (
    Gaussian,
    distance_of_features,
    find_root,
    fit_gaussian,
    frechet_distance,
)


def draw(n, d, seed=0, shift=0.0):
    return (
        np.random.default_rng(seed).standard_normal((n, d)) @ np.diag(np.arange(1, d + 1)) + shift
    )


def test_the_distance_of_independent_dimensions_is_known():
    a = Gaussian(np.array([0.0, 1.0]), np.diag([4.0, 9.0]))
    b = Gaussian(np.array([1.0, 3.0]), np.diag([1.0, 25.0]))
    expected = 1**2 + 2**2 + (2 - 1) ** 2 + (3 - 5) ** 2
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-14)  # measured: 0


def test_it_is_zero_to_itself_and_symmetric():
    a, b = fit_gaussian(draw(50, 8)), fit_gaussian(draw(60, 8, seed=1, shift=0.2))
    assert abs(frechet_distance(a, a)) < 1e-10  # measured: 1e-13; the traces are 200
    np.testing.assert_allclose(
        frechet_distance(a, b), frechet_distance(b, a), rtol=1e-12
    )  # measured: 1e-14


def test_a_singular_covariance_gives_the_limit_of_regular_ones():
    few, b = draw(5, 8), fit_gaussian(draw(60, 8, seed=1))
    a = fit_gaussian(few)
    assert find_root(a.covariance).shape == (8, 4)
    almost = Gaussian(a.mean, a.covariance + 1e-12 * np.eye(8))
    found = frechet_distance(a, b)
    np.testing.assert_allclose(found, frechet_distance(almost, b), rtol=1e-5)  # measured: 2e-7
    np.testing.assert_allclose(found, distance_of_features(few, b), rtol=1e-7)  # measured: 8e-9
    np.testing.assert_allclose(found, frechet_distance(b, a), rtol=1e-6)  # measured: 2e-8


def test_constant_features_have_a_distance():
    a = fit_gaussian(np.ones((3, 2)))
    assert frechet_distance(a, a) == 0
    assert frechet_distance(a, Gaussian(np.zeros(2), np.eye(2))) == 4


@pytest.mark.parametrize(
    ("features", "message"), [(np.ones((1, 2)), "too few"), (np.full((3, 2), np.nan), "finite")]
)
def test_features_without_a_covariance_are_refused(features, message):
    with pytest.raises(UserError, match=message):
        fit_gaussian(features)
