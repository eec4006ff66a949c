import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.quality.distances import cubic_mmd, inception_score, kernel_distance


def draw(n, d=3, seed=0, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


def test_the_kernel_distance_is_the_unbiased_estimate():
    x, y = draw(4), draw(5, seed=1)
    kernel = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    within = [
        np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
        for z in (x, y)
    ]
    across = np.mean([kernel(a, b) for a in x for b in y])
    np.testing.assert_allclose(cubic_mmd(x, y), sum(within) - 2 * across, rtol=1e-12)  # measured: 0


def test_the_kernel_distance_of_one_distribution_is_about_zero():
    same = kernel_distance(draw(400), draw(400, seed=1), num_subsets=10, subset_size=200)
    other = kernel_distance(
        draw(400), draw(400, seed=1, shift=0.5), num_subsets=10, subset_size=200
    )
    assert abs(same.mean) < 0.1 * other.mean
    assert (
        kernel_distance(draw(5), draw(400, seed=1), num_subsets=2).mean != 0
    )  # fewer than a subset


def test_the_score_counts_classes():
    sure = 50 * np.eye(10)[np.arange(1000) % 10]
    np.testing.assert_allclose(
        inception_score(sure, num_splits=1).mean, 10, rtol=1e-9
    )  # measured: 7e-16
    np.testing.assert_allclose(inception_score(0 * sure).mean, 1, rtol=1e-9)  # measured: 2e-15
    np.testing.assert_allclose(inception_score(sure[:1].repeat(20, 0)).mean, 1, rtol=1e-9)


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="too few for a kernel distance"):
        kernel_distance(draw(1), draw(5))
    with pytest.raises(UserError, match="9 images are too few"):
        inception_score(np.zeros((9, 4)))
