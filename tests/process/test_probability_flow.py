import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_ddpm.jobs.likelihood import flow_timesteps
from jax_ddpm.process.levels import Level, level_at
from jax_ddpm.process.probability_flow import (
    bits_per_dimension,
    dequantize,
    draw_probes,
    exact_probes,
    flow_log_density,
    velocity_and_divergence,
)
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.process.types import Prediction

SHAPE = (1, 3, 1)  # three numbers per image, which are correlated
MEAN = np.array([0.3, -0.2, 0.1])
VARIANCES = np.array([0.1, 0.3, 0.6])
AXES = stats.ortho_group(3, seed=0).rvs()
X = jnp.asarray(
    MEAN + np.random.default_rng(0).standard_normal((4, 3)) * VARIANCES**0.5 @ AXES.T
).reshape(4, *SHAPE)
LEVEL = Level(jnp.array(3), jnp.array(0.8), jnp.array(0.6))


def correlated_denoiser(x_t, level):
    """The exact denoiser of Gaussian data with these variances along the AXES."""
    mean, axes, variances = (jnp.asarray(a, x_t.dtype) for a in (MEAN, AXES, VARIANCES))
    gain = level.signal * variances / (level.signal**2 * variances + level.sigma**2)
    off = x_t.reshape(-1, 3) - (level.signal * mean)[None]
    x_0 = (mean[None] + off @ axes * gain[None] @ axes.T).reshape(x_t.shape)
    return Prediction(x_0, (x_t - level.signal * x_0) / level.sigma)


def make_levels_by_angle(num_steps, first=0.01, dtype=jnp.float64):
    angles = jnp.linspace(first, math.pi / 2, num_steps + 1, dtype=dtype)
    return Level(jnp.zeros(num_steps + 1, int), jnp.cos(angles), jnp.sin(angles))


def exact_log_density(noise_left):
    covariance = AXES * (VARIANCES + noise_left**2) @ AXES.T
    return stats.multivariate_normal(MEAN, covariance).logpdf(np.asarray(X).reshape(4, 3))


@jax.jit
def log_density(levels, probes=None):
    x = X.astype(levels.signal.dtype)
    probes = exact_probes(x) if probes is None else probes
    return flow_log_density(correlated_denoiser, levels, x, probes)


def test_the_density_of_gaussian_data_is_exact_to_second_order():
    exact, errors = exact_log_density(math.tan(0.01)), []
    for num_steps in (25, 50, 100):
        errors.append(np.abs(log_density(make_levels_by_angle(num_steps)) - exact).max())
    assert errors[-1] < 1e-3  # measured: 4.4e-3, 1.1e-3, 2.8e-4
    # measured: 2.002, 2.000
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 2, rtol=0, atol=0.05)


@pytest.mark.slow
def test_the_levels_of_a_schedule_give_the_density_at_its_first_noise_level():
    schedule = named_schedule("cosine", 1000, dtype=jnp.float64)
    levels = level_at(schedule, jnp.asarray(flow_timesteps(1000, 200)))
    exact = exact_log_density(float(levels.sigma[0] / levels.signal[0]))
    found = log_density(levels)
    np.testing.assert_allclose(found, exact, rtol=0, atol=5e-4)  # measured: 5.9e-5
    single = log_density(jax.tree.map(lambda a: a.astype(jnp.float32), levels))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, found, rtol=0, atol=2e-5)  # measured: 1.9e-6


def nonlinear_denoiser(x_t, level):
    mixed = jnp.sin(x_t + 0.5 * x_t[:, :, ::-1])
    return Prediction(mixed, x_t**2)


@jax.jit
def divergence(probes):
    return velocity_and_divergence(nonlinear_denoiser, X, LEVEL, probes)[1]


@jax.jit
def exact_divergence():
    def velocity(flat):
        x_0, eps, _ = nonlinear_denoiser(flat.reshape(1, *SHAPE), LEVEL)
        return (LEVEL.signal * eps - LEVEL.sigma * x_0).ravel()

    return jnp.stack([jnp.trace(jax.jacobian(velocity)(image.ravel())) for image in X])


def test_one_probe_for_each_number_gives_the_divergence_itself():
    np.testing.assert_allclose(divergence(exact_probes(X)), exact_divergence(), rtol=1e-13)


def test_the_mean_over_all_signs_is_the_divergence():
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, 8).T
    probes = jnp.broadcast_to(jnp.asarray(signs).reshape(8, 1, *SHAPE), (8, *X.shape))
    found = divergence(probes)
    np.testing.assert_allclose(found, exact_divergence(), rtol=1e-13)
    one = divergence(probes[:1])
    assert np.abs(one - found).min() > 1e-3


@pytest.mark.parametrize("kind", ["rademacher", pytest.param("normal", marks=pytest.mark.slow)])
def test_probes_are_unbiased_and_depend_on_their_images_key_alone(kind):
    keys = jax.vmap(jax.random.key)(jnp.arange(4))
    probes = draw_probes(keys, SHAPE, 20_000, jnp.float64, kind=kind)
    assert (probes.shape, probes.dtype) == ((20_000, *X.shape), jnp.float64)
    alone = draw_probes(keys[2:3], SHAPE, 20_000, jnp.float64, kind=kind)
    np.testing.assert_array_equal(alone[:, 0], probes[:, 2])
    assert (np.abs(probes) == 1).all() == (kind == "rademacher")
    found = divergence(probes)
    # measured: 0.007 (signs), 0.019 (normal)
    np.testing.assert_allclose(found, exact_divergence(), rtol=0, atol=0.06)


@pytest.mark.slow
def test_random_probes_estimate_the_density_without_bias():
    levels = make_levels_by_angle(50)
    keys = jax.vmap(jax.random.key)(jnp.arange(4))
    many = draw_probes(keys, SHAPE, 512, jnp.float64)
    singles = jax.vmap(lambda probe: log_density(levels, probe[None]))(many)
    # the probes of one call are averaged, and the flow of a Gaussian is linear in them
    np.testing.assert_allclose(log_density(levels, many), singles.mean(0), rtol=1e-12)
    spread = np.asarray(singles.std(0)) / 512**0.5
    z = np.abs(singles.mean(0) - log_density(levels)) / spread
    assert z.max() < 4  # measured: 2.5 standard errors of 0.035


def test_pixels_of_one_value_in_256_cost_eight_bits():
    uniform = -12 * math.log(512 / 255)  # the density of twelve numbers, spread over all bins
    np.testing.assert_allclose(bits_per_dimension(jnp.array([uniform]), 12), [8], rtol=1e-14)


def test_pixels_are_spread_over_their_bins():
    x = jnp.arange(256, dtype=jnp.float64).reshape(1, 16, 16, 1) / 127.5 - 1
    low, high = dequantize(x, jnp.zeros_like(x)), dequantize(x, jnp.ones_like(x))
    np.testing.assert_allclose(high - low, 1 / 127.5, rtol=1e-13)
    np.testing.assert_allclose(high.ravel()[:-1], low.ravel()[1:], rtol=0, atol=1e-15)
    np.testing.assert_allclose((low + high) / 2, x, rtol=0, atol=1e-15)
