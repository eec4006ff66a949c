import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_ddpm.diffusion import Gaussian, Prediction, p_mean_variance, q_posterior, q_sample
from jax_ddpm.likelihood import (
    approx_normal_cdf,
    discretized_gaussian_log_likelihood,
    mean_bits,
    normal_kl,
    prior_term,
    vb_term,
)
from jax_ddpm.schedules import named_schedule

T = 50
SHAPE = (3, 4, 4, 1)
term_of = jax.jit(vb_term)  # compiles once, and not each of its operations
SCHEDULE = named_schedule("cosine", T, dtype=jnp.float64)


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def gaussian(mean, log_variance):
    mean, log_variance = jnp.float64(mean), jnp.float64(log_variance)
    return Gaussian(mean, jnp.exp(log_variance), log_variance)


@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, 0.0), (1.5, -1.0), (-0.3, 1.2)])
def test_the_divergence_of_gaussians_is_that_of_the_integral(mean, log_variance):
    p, q = stats.norm(0.4, np.exp(-0.35)), stats.norm(mean, np.exp(log_variance / 2))
    x = np.linspace(-15, 15, 20_001)
    integral = np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
    found = normal_kl(gaussian(0.4, -0.7), gaussian(mean, log_variance))
    np.testing.assert_allclose(found, integral, rtol=1e-12)  # measured: 1e-16


def test_the_divergence_of_a_gaussian_from_itself_is_zero():
    assert normal_kl(gaussian(0.4, -0.7), gaussian(0.4, -0.7)) == 0


def test_the_approximate_cdf_is_close_to_the_normal_one_and_flat_far_out():
    x = jnp.linspace(-8, 8, 1001)
    assert np.abs(approx_normal_cdf(x) - stats.norm.cdf(x)).max() < 2e-4  # measured: 1.8e-4
    far = jnp.array([-1e30, -30.0, 30.0, 1e30], jnp.float32)
    np.testing.assert_array_equal(approx_normal_cdf(far), [0, 0, 1, 1])
    slopes = jax.vmap(jax.grad(approx_normal_cdf))(far)
    np.testing.assert_array_equal(slopes, [0, 0, 0, 0])


@pytest.mark.parametrize(
    ("mean", "log_scale"), [(-1.3, -3.0), (0.0, -6.0), (0.999, -6.0), (0.4, 0.0)]
)
def test_the_probabilities_of_all_pixel_values_sum_to_one(mean, log_scale):
    x = jnp.arange(256, dtype=jnp.float64).reshape(256, 1, 1, 1) / 127.5 - 1
    logs = discretized_gaussian_log_likelihood(
        x, jnp.full_like(x, mean), jnp.full_like(x, log_scale), floor=1e-30
    )
    np.testing.assert_allclose(jnp.exp(logs).sum(), 1, rtol=1e-12)  # measured: 4e-15


@pytest.mark.parametrize("floor", [1e-12, 1e-15])
def test_no_probability_is_below_the_floor(floor):
    x = jnp.zeros((1, 1, 1, 1))
    found = discretized_gaussian_log_likelihood(x, x + 1, x - 20, floor=floor)
    np.testing.assert_allclose(found.ravel(), [np.log(floor)], rtol=1e-14)


def test_a_perfect_model_pays_nothing_before_the_last_step():
    x_0, t = jnp.clip(normal(0), -1, 1), jnp.array([1, 25, 49])
    x_t = q_sample(SCHEDULE, x_0, t, normal(1))
    posterior = jax.jit(q_posterior)(SCHEDULE, x_0, x_t, t)
    np.testing.assert_array_equal(term_of(SCHEDULE, x_0, x_t, t, posterior), [0, 0, 0])
    off = posterior._replace(mean=posterior.mean + 0.1)
    expected = jax.jit(lambda p, q: mean_bits(normal_kl(p, q)))(posterior, off)
    np.testing.assert_allclose(term_of(SCHEDULE, x_0, x_t, t, off), expected, rtol=1e-13)


def test_the_last_step_pays_for_the_pixels_themselves():
    x_0 = jnp.clip(normal(0), -1, 1)
    t = jnp.zeros(3, int)
    x_t = q_sample(SCHEDULE, x_0, t, normal(1))
    model = p_mean_variance(SCHEDULE, Prediction(x_0, x_0), x_t, t, "fixed_small")
    log_scale = jnp.broadcast_to(model.log_variance / 2, SHAPE)
    nll = -discretized_gaussian_log_likelihood(x_0, model.mean, log_scale)
    found = term_of(SCHEDULE, x_0, x_t, t, model)
    np.testing.assert_allclose(found, nll.mean((1, 2, 3)) / np.log(2), rtol=1e-13)


def test_the_variance_of_the_last_step_is_that_of_the_schedules_convention():
    x, t = jnp.zeros((1, 1, 1, 1)), jnp.zeros(1, int)
    found = {}
    for clip in ("second_entry", "floor"):
        schedule = named_schedule("linear", 1000, dtype=jnp.float64, clipped_log_variance=clip)
        for variance in ("fixed_small", "fixed_large"):
            model = p_mean_variance(schedule, Prediction(x, x), x, t, variance)
            found[clip, variance] = float(model.log_variance.ravel()[0])
    second = np.log(schedule.posterior_variance[1])  # -9.8167
    expected = [second, second, np.log(1e-20), np.log(1e-20)]
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-14)


@pytest.mark.parametrize("clip", ["second_entry", "floor"])
def test_gradients_are_finite_in_single_precision_however_small_the_variance(clip):
    schedule = named_schedule("cosine", T, clipped_log_variance=clip)
    x_0, t = jnp.clip(normal(0), -1, 1).astype(jnp.float32), jnp.array([0, 1, 49])
    x_t = q_sample(schedule, x_0, t, normal(1).astype(jnp.float32))

    @jax.jit
    @jax.grad
    def gradient(predicted):
        x_0_predicted, raw_variance = predicted
        prediction = Prediction(x_0_predicted, x_0, raw_variance)
        model = p_mean_variance(schedule, prediction, x_t, t, "learned_range")
        return vb_term(schedule, x_0, x_t, t, model).sum()

    for raw in (-5.0, 0.0, 3.0):
        gradients = gradient((0.9 * x_0, jnp.full_like(x_0, raw)))
        assert all(bool(jnp.isfinite(g).all()) for g in gradients), raw


def test_little_is_left_of_the_image_at_the_end_of_the_chain():
    x_0 = jnp.clip(normal(0), -1, 1)
    left = prior_term(SCHEDULE, x_0)
    assert left.shape == (3,)
    assert np.all((left > 0) & (left < 1e-3))
    signal2 = SCHEDULE.alphas_cumprod[-1]
    nats = 0.5 * (signal2 * (x_0**2 - 1) - jnp.log1p(-signal2)).mean((1, 2, 3))
    np.testing.assert_allclose(left, nats / np.log(2), rtol=1e-12)  # measured: 2e-16
