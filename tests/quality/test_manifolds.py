import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.quality import manifolds
from jax_ddpm.quality.manifolds import density_and_coverage, find_nearest, precision_and_recall


def draw(n, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal((n, 3))


def distance(a, b):
    return np.sqrt(((a - b) ** 2).sum())


def radius(points, i, k):
    return sorted(distance(points[i], other) for other in points)[k]


@pytest.mark.parametrize("chunk", [4, 1024])
def test_shares_are_what_their_definitions_say(monkeypatch, chunk):
    monkeypatch.setattr(manifolds, "CHUNK", chunk)
    drawn, real = draw(11, scale=1.4), draw(9, seed=1)
    inside = lambda p, qs, k: [distance(p, q) <= radius(qs, i, k) for i, q in enumerate(qs)]  # noqa: E731
    precision = np.mean([any(inside(p, real, 3)) for p in drawn])
    recall = np.mean([any(inside(p, drawn, 3)) for p in real])
    assert precision_and_recall(drawn, real) == pytest.approx((precision, recall))
    density = np.sum([inside(p, real, 5) for p in drawn]) / (5 * 11)
    coverage = np.mean(
        [any(distance(p, q) < radius(real, i, 5) for p in drawn) for i, q in enumerate(real)]
    )
    assert density_and_coverage(drawn, real) == pytest.approx((density, coverage))
    assert 0 < precision < 1 and density > 0


def test_copies_are_found_at_distance_zero():
    real = draw(20)
    found = find_nearest(real[[7, 3]] + 1e-9, real, 2)
    assert found.indices[:, 0].tolist() == [7, 3]
    assert (found.distances[:, 0] < 1e-6).all() and (found.distances[:, 1] > 1e-2).all()
    assert precision_and_recall(real, real.copy()) == (1.0, 1.0)


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="3 images are too few: use more than 3"):
        precision_and_recall(draw(3), draw(9))
