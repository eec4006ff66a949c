from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.process.diffusion import (
    add_noise,
    p_mean_variance,
    q_posterior,
    q_sample,
    q_step,
    x_0_from_x_prev,
)
from jax_ddpm.process.levels import Level, level_at
from jax_ddpm.process.predictions import (
    PredictionType,
    eps_from_v,
    eps_from_x_0,
    prediction_target,
    to_prediction,
    v_from,
    x_0_from_eps,
    x_0_from_v,
)
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.process.shapes import expand
from jax_ddpm.process.types import Prediction

TYPES = get_args(PredictionType)
SCHEDULES = ["linear", "cosine", "sigmoid_cumprod"]
SHAPE = (3, 4, 4, 2)


def draw_normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def make_exact_schedule(name="linear", T=1000):
    return named_schedule(name, T, dtype=jnp.float64)


def test_a_value_per_example_broadcasts_over_pixels():
    images = jnp.zeros(SHAPE)
    assert expand(jnp.ones(3), images).shape == (3, 1, 1, 1)
    assert expand(jnp.float32(1), images).shape == ()


def test_q_sample_has_the_moments_of_the_forward_process():
    schedule = make_exact_schedule()
    n, t = 40_000, jnp.array([0, 300, 999])
    x_0 = jnp.full((3, n, 1, 1), 0.7)
    x_t = np.asarray(q_sample(schedule, x_0, t, draw_normal(0, x_0.shape)))[..., 0, 0]
    signal, sigma = schedule.sqrt_alphas_cumprod[t], schedule.sqrt_one_minus_alphas_cumprod[t]
    # Five standard errors; measured with this key: at most 2.2 of them.
    assert np.all(np.abs(x_t.mean(1) - signal * 0.7) < 5 * sigma / n**0.5)
    assert np.all(np.abs(x_t.std(1) - sigma) < 5 * sigma / (2 * n) ** 0.5)


def test_q_sample_is_affine_in_the_image_and_the_noise_with_the_tables_as_coefficients():
    schedule = make_exact_schedule("cosine", 10)
    t, one, zero = jnp.arange(10), jnp.ones((10, 1, 1, 1)), jnp.zeros((10, 1, 1, 1))
    of_image = q_sample(schedule, one, t, zero).ravel()
    of_noise = q_sample(schedule, zero, t, one).ravel()
    np.testing.assert_array_equal(of_image, schedule.sqrt_alphas_cumprod)
    np.testing.assert_array_equal(of_noise, schedule.sqrt_one_minus_alphas_cumprod)


@pytest.mark.parametrize("name", SCHEDULES)
def test_single_steps_compose_to_q_sample(name):
    schedule, T = make_exact_schedule(name, 200), 200
    t, one, zero = jnp.arange(T), jnp.ones((T, 1, 1, 1)), jnp.zeros((T, 1, 1, 1))
    factors = np.asarray(q_step(schedule, one, t, zero)).ravel()
    noises = np.asarray(q_step(schedule, zero, t, one)).ravel()
    mean, variance = 1.0, 0.0
    for i in range(T):
        mean, variance = factors[i] * mean, factors[i] ** 2 * variance + noises[i] ** 2
        # Measured: 1e-15 and 2e-13 relative.
        np.testing.assert_allclose(mean, schedule.sqrt_alphas_cumprod[i], rtol=1e-12)
        sigma = schedule.sqrt_one_minus_alphas_cumprod[i]
        np.testing.assert_allclose(variance, sigma**2, rtol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_q_posterior_is_bayes_rule(name):
    T, x_0, x_t = 50, 0.3, -0.8
    schedule = make_exact_schedule(name, T)
    for t in range(1, T):
        # Prior of x_{t-1} given x_0, and likelihood of x_t given x_{t-1}.
        prior_mean = schedule.sqrt_alphas_cumprod[t - 1] * x_0
        prior_precision = 1 / schedule.sqrt_one_minus_alphas_cumprod[t - 1] ** 2
        factor, noise_variance = jnp.sqrt(1 - schedule.betas[t]), schedule.betas[t]
        precision = prior_precision + factor**2 / noise_variance
        mean = (prior_precision * prior_mean + factor / noise_variance * x_t) / precision
        images = jnp.ones((1, 1, 1, 1))
        posterior = q_posterior(schedule, x_0 * images, x_t * images, jnp.array([t]))
        # Measured: 3e-14 relative, and 0 for the logarithm.
        np.testing.assert_allclose(posterior.mean, [[[[mean]]]], rtol=1e-10)
        np.testing.assert_allclose(posterior.variance, [[[[1 / precision]]]], rtol=1e-10)
        np.testing.assert_allclose(posterior.log_variance, jnp.log(posterior.variance), rtol=1e-13)


def test_the_posterior_of_the_first_step_is_the_clean_image():
    x_0, x_t = draw_normal(0), draw_normal(1)
    posterior = q_posterior(make_exact_schedule(), x_0, x_t, jnp.zeros(3, int))
    np.testing.assert_allclose(posterior.mean, x_0, rtol=1e-11)  # measured: 1.1e-13
    np.testing.assert_array_equal(posterior.variance, 0)


@pytest.mark.parametrize("t", [0, 500, 999])
def test_conversions_are_inverse_to_each_other(t):
    x_0, eps = draw_normal(0), draw_normal(1)
    level = level_at(make_exact_schedule(), jnp.full(3, t))
    x_t, v = add_noise(level, x_0, eps), v_from(level, x_0, eps)
    # Measured: at most 3e-14 absolute, where dividing by signal = 0.006 or sigma = 0.01 amplifies.
    for found, expected in [
        (x_0_from_eps(level, x_t, eps), x_0),
        (eps_from_x_0(level, x_t, x_0), eps),
        (x_0_from_v(level, x_t, v), x_0),
        (eps_from_v(level, x_t, v), eps),
    ]:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("t", [0, 500, 999])
def test_the_target_as_output_predicts_the_truth(prediction_type, t):
    x_0, noise = draw_normal(0), draw_normal(1)
    level = level_at(make_exact_schedule(), jnp.full(3, t))
    target = prediction_target(level, x_0, noise, prediction_type)
    found = to_prediction(target, add_noise(level, x_0, noise), level, prediction_type)
    np.testing.assert_allclose(found.x_0, x_0, rtol=0, atol=1e-11)  # measured: 3e-14
    np.testing.assert_allclose(found.eps, noise, rtol=0, atol=1e-11)  # measured: 2e-14


@pytest.mark.parametrize("prediction_type", TYPES)
def test_x_0_and_eps_are_consistent_for_any_output(prediction_type):
    x_t, output = draw_normal(0), draw_normal(1)
    level = level_at(make_exact_schedule(), jnp.array([1, 500, 900]))
    found = to_prediction(output, x_t, level, prediction_type)
    np.testing.assert_allclose(
        add_noise(level, found.x_0, found.eps), x_t, rtol=0, atol=1e-12
    )  # measured: 7e-16


def test_one_level_for_all_equals_one_level_per_example():
    x_0, noise = draw_normal(0), draw_normal(1)
    schedule = make_exact_schedule()
    one, each = level_at(schedule, jnp.array(7)), level_at(schedule, jnp.full(3, 7))
    assert one.signal.ndim == 0
    np.testing.assert_array_equal(add_noise(one, x_0, noise), add_noise(each, x_0, noise))


def test_v_is_the_derivative_of_x_t_along_the_noise_angle():
    x_0, eps, angle = draw_normal(0), draw_normal(1), 0.9

    def x_at(phi):
        return jnp.cos(phi) * x_0 + jnp.sin(phi) * eps

    _, derivative = jax.jvp(x_at, (angle,), (1.0,))
    level = Level(jnp.array(0), jnp.cos(angle), jnp.sin(angle))
    np.testing.assert_allclose(v_from(level, x_0, eps), derivative, rtol=1e-13)  # measured: 0


def test_x_0_is_recovered_from_the_mean_of_the_posterior():
    schedule, t = make_exact_schedule(), jnp.array([0, 500, 999])
    x_0, x_t = draw_normal(0), draw_normal(1)
    x_prev = q_posterior(schedule, x_0, x_t, t).mean
    found = x_0_from_x_prev(schedule, x_t, t, x_prev)
    np.testing.assert_allclose(found, x_0, rtol=0, atol=1e-9)  # measured: 2e-12


def test_the_reverse_step_has_the_posterior_mean_and_the_requested_variance():
    schedule, t = make_exact_schedule(), jnp.array([0, 500, 999])
    x_0, x_t = draw_normal(0), draw_normal(1)
    posterior = q_posterior(schedule, x_0, x_t, t)
    log_betas = jnp.log(schedule.betas[t])
    found = {}
    for name, raw in {"small": -1.0, "large": 1.0, "middle": 0.0}.items():
        prediction = Prediction(x_0, x_0, jnp.full_like(x_0, raw))
        model = p_mean_variance(schedule, prediction, x_t, t, "learned_range")
        np.testing.assert_array_equal(model.mean, posterior.mean)
        np.testing.assert_allclose(model.variance, jnp.exp(model.log_variance), rtol=1e-14)
        found[name] = model.log_variance[:, 0, 0, 0]
    small = posterior.log_variance.ravel()
    np.testing.assert_allclose(found["small"], small, rtol=1e-14)
    np.testing.assert_allclose(found["large"], log_betas, rtol=1e-14)
    np.testing.assert_allclose(found["middle"], (small + log_betas) / 2, rtol=1e-14)
    large = p_mean_variance(schedule, Prediction(x_0, x_0), x_t, t, "fixed_large")
    np.testing.assert_array_equal(large.log_variance.ravel()[1:], log_betas[1:])
    assert large.log_variance.ravel()[0] == small[0] != log_betas[0]
    learned = Prediction(x_0, x_0, x_t)
    model = p_mean_variance(schedule, learned, x_t, t, "learned")
    np.testing.assert_array_equal(model.log_variance, x_t)


def test_a_learned_variance_must_have_been_predicted():
    x, t = draw_normal(0), jnp.array([0, 500, 999])
    with pytest.raises(ValueError, match="'learned_range' needs a network that predicts it"):
        p_mean_variance(make_exact_schedule(), Prediction(x, x), x, t, "learned_range")
