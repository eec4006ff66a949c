import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jax_ddpm.process.denoiser import respace_denoiser
from jax_ddpm.process.diffusion import p_mean_variance, q_posterior, q_sample
from jax_ddpm.process.grids import respace_betas, space_timesteps
from jax_ddpm.process.likelihood import (
    approx_normal_cdf,
    discretized_gaussian_log_likelihood,
    make_noise_fn,
    make_reverse_fn,
    mean_bits,
    normal_kl,
    prior_term,
    variational_bound,
    vb_term,
)
from jax_ddpm.process.schedules import BETAS, linear_betas, make_schedule, named_schedule
from jax_ddpm.process.types import Gaussian, Prediction

T = 50
SHAPE = (3, 4, 4, 1)
compute_term = jax.jit(vb_term)  # compiled once, instead of operation by operation
SCHEDULE = named_schedule("cosine", T, dtype=jnp.float64)


def draw_normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def make_gaussian(mean, log_variance):
    mean, log_variance = jnp.float64(mean), jnp.float64(log_variance)
    return Gaussian(mean, jnp.exp(log_variance), log_variance)


@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, 0.0), (1.5, -1.0), (-0.3, 1.2)])
def test_the_divergence_of_gaussians_is_the_integral(mean, log_variance):
    p, q = stats.norm(0.4, np.exp(-0.35)), stats.norm(mean, np.exp(log_variance / 2))
    x = np.linspace(-15, 15, 20_001)
    integral = np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
    found = normal_kl(make_gaussian(0.4, -0.7), make_gaussian(mean, log_variance))
    np.testing.assert_allclose(found, integral, rtol=1e-12)  # measured: 1e-16


def test_the_divergence_of_a_gaussian_from_itself_is_zero():
    assert normal_kl(make_gaussian(0.4, -0.7), make_gaussian(0.4, -0.7)) == 0


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


def measure_bins(x, mean, log_scale):
    """Measure ln(cdf(upper) - cdf(lower)) as Eq. 13 has it, both on the negative side."""
    x, mean, log_scale = (np.asarray(a, np.longdouble) for a in (x, mean, log_scale))
    sides = [np.exp(-log_scale) * (x - mean + side / np.longdouble(255)) for side in (1, -1)]
    sides[0][x > 0.999], sides[1][x < -0.999] = 1e3, -1e3
    turned = sum(sides) > 0  # where cdf(upper) - cdf(lower) is cdf(-lower) - cdf(-upper)
    upper, lower = np.where(turned, [-sides[1], -sides[0]], sides)
    slope = np.sqrt(2 / np.longdouble(np.pi))
    below = [np.exp(2 * slope * (z + np.longdouble("0.044715") * z**3)) for z in (upper, lower)]
    return np.log(below[0] / (1 + below[0]) - below[1] / (1 + below[1]))


def draw_bins(dtype):
    rng = np.random.default_rng(0)
    log_scale = rng.uniform(-5.5, 0.5, (64, 8, 8, 1))
    x = rng.integers(0, 256, log_scale.shape) / 127.5 - 1
    mean = x + np.exp(log_scale) * rng.uniform(-4.5, 4.5, x.shape)
    return [jnp.asarray(a, dtype) for a in (x, mean, log_scale)]


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-6), ("float64", 2e-15)])
def test_improbable_pixels_keep_their_digits_on_both_sides_of_the_mean(dtype, rtol):
    """Half of these pixels lie above the mean, where both cdfs of the bin are close to 1."""
    x, mean, log_scale = draw_bins(dtype)
    expected = measure_bins(x, mean, log_scale)
    assert expected.min() < -16  # nats; the floor is at -27.6
    found = np.asarray(discretized_gaussian_log_likelihood(x, mean, log_scale))
    error = np.abs(found - expected) / np.maximum(1, np.abs(expected))
    assert error.max() < rtol  # measured: 3e-7 and 6e-16


def test_improbable_pixels_have_the_gradient_of_double_precision():
    single = draw_bins("float32")
    double = [a.astype(jnp.float64) for a in single]
    slope = jax.grad(lambda m, x, s: discretized_gaussian_log_likelihood(x, m, s).sum())
    found, expected = (slope(mean, x, log_scale) for x, mean, log_scale in (single, double))
    assert found.dtype == jnp.float32
    assert jnp.all(found != 0)
    worst = (jnp.abs(found - expected) / (1 + jnp.abs(expected))).max()
    assert worst < 1e-5, worst


def test_the_terms_of_a_perfect_model_are_zero_before_the_last_step():
    x_0, t = jnp.clip(draw_normal(0), -1, 1), jnp.array([1, 25, 49])
    x_t = q_sample(SCHEDULE, x_0, t, draw_normal(1))
    posterior = jax.jit(q_posterior)(SCHEDULE, x_0, x_t, t)
    np.testing.assert_array_equal(compute_term(SCHEDULE, x_0, x_t, t, posterior), [0, 0, 0])
    off = posterior._replace(mean=posterior.mean + 0.1)
    expected = jax.jit(lambda p, q: mean_bits(normal_kl(p, q)))(posterior, off)
    np.testing.assert_allclose(compute_term(SCHEDULE, x_0, x_t, t, off), expected, rtol=1e-13)


def test_the_last_term_is_the_likelihood_of_the_pixels():
    x_0 = jnp.clip(draw_normal(0), -1, 1)
    t = jnp.zeros(3, int)
    x_t = q_sample(SCHEDULE, x_0, t, draw_normal(1))
    model = p_mean_variance(SCHEDULE, Prediction(x_0, x_0), x_t, t, "fixed_small")
    log_scale = jnp.broadcast_to(model.log_variance / 2, SHAPE)
    nll = -discretized_gaussian_log_likelihood(x_0, model.mean, log_scale)
    found = compute_term(SCHEDULE, x_0, x_t, t, model)
    np.testing.assert_allclose(found, nll.mean((1, 2, 3)) / np.log(2), rtol=1e-13)


def test_the_variance_of_the_last_step_follows_the_schedules_convention():
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
def test_gradients_are_finite_in_single_precision_for_any_variance(clip):
    schedule = named_schedule("cosine", T, clipped_log_variance=clip)
    x_0, t = jnp.clip(draw_normal(0), -1, 1).astype(jnp.float32), jnp.array([0, 1, 49])
    x_t = q_sample(schedule, x_0, t, draw_normal(1).astype(jnp.float32))

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


def test_the_prior_term_measures_what_is_left_of_the_image():
    x_0 = jnp.clip(draw_normal(0), -1, 1)
    left = prior_term(SCHEDULE, x_0)
    assert left.shape == (3,)
    assert np.all((left > 0) & (left < 1e-3))
    signal2 = SCHEDULE.alphas_cumprod[-1]
    nats = 0.5 * (signal2 * (x_0**2 - 1) - jnp.log1p(-signal2)).mean((1, 2, 3))
    np.testing.assert_allclose(left, nats / np.log(2), rtol=1e-12)  # measured: 2e-16


MU, STD = 0.1, 0.3  # of Gaussian pixels, which are then rounded to 8 bits


def make_exact_denoiser(schedule):
    """E[x_0 | x_t] of Gaussian pixels, and the logarithm of the variance of p(x_{t-1} | x_t)."""

    def denoise(x_t, level):
        signal, sigma = level.signal[0], level.sigma[0]
        marginal = signal**2 * STD**2 + sigma**2
        x_0 = MU + signal * STD**2 / marginal * (x_t - signal * MU)
        of_x_0 = STD**2 * sigma**2 / marginal
        t = level.t[0]
        variance = schedule.posterior_variance[t] + schedule.posterior_mean_coef1[t] ** 2 * of_x_0
        log_variance = jnp.broadcast_to(jnp.log(variance), x_t.shape)
        return Prediction(x_0, (x_t - signal * x_0) / sigma, log_variance)

    return denoise


def draw_pixels(num):
    """Draw 8-bit pixels; return them and their exact cost in bits."""
    pixels = np.round((MU + STD * np.random.default_rng(0).standard_normal(num) + 1) * 127.5)
    pixels = np.clip(pixels, 0, 255).astype(int)
    edges = (np.arange(257) - 0.5) / 127.5 - 1
    edges[[0, -1]] = -np.inf, np.inf
    bits = -np.log2(np.diff(stats.norm(MU, STD).cdf(edges)))[pixels]
    return jnp.asarray(pixels / 127.5 - 1).reshape(4, -1, 64, 1), bits.mean()


@pytest.mark.parametrize("num_timesteps", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_the_bound_of_the_exact_model_is_the_entropy_of_the_pixels(num_timesteps):
    schedule = make_schedule(linear_betas(num_timesteps, start=0.05, end=0.9), dtype=jnp.float64)
    x_0, exact = draw_pixels(4 * 64 * 256)
    keys = jax.vmap(jax.random.key)(jnp.arange(4))

    @jax.jit
    def compute_bound(log_factor):
        def denoise(x_t, level):
            prediction = make_exact_denoiser(schedule)(x_t, level)
            return prediction._replace(raw_variance=prediction.raw_variance + log_factor)

        reverse_fn = make_reverse_fn(schedule, denoise, "learned")
        noise_fn = make_noise_fn(keys, x_0.shape[1:], x_0.dtype)
        return variational_bound(schedule, reverse_fn, x_0, noise_fn)

    bound = compute_bound(0.0)
    assert bound.terms.shape == bound.x_0_mse.shape == bound.eps_mse.shape == (num_timesteps, 4)
    # measured: 1.4e-3 (5 terms) and 5e-4 (50) of 7.296 bits
    np.testing.assert_allclose(bound.total.mean(), exact, rtol=0, atol=4e-3)
    for factor in (-0.5, 0.5):  # a wrong variance costs at least 0.39 bits more
        assert compute_bound(factor).total.mean() > exact + 0.3
    variance = schedule.sqrt_one_minus_alphas_cumprod**2
    of_x_0 = STD**2 * variance / (schedule.alphas_cumprod * STD**2 + variance)
    of_eps = of_x_0 * schedule.alphas_cumprod / variance
    np.testing.assert_allclose(bound.x_0_mse.mean(1), of_x_0, rtol=0.03)  # measured: 0.007
    np.testing.assert_allclose(bound.eps_mse.mean(1), of_eps, rtol=0.03)  # measured: 0.007


def test_noise_depends_only_on_image_and_timestep():
    keys = jax.vmap(jax.random.key)(jnp.arange(5))
    noise_fn = jax.jit(make_noise_fn(keys, (2, 2, 1), jnp.float64))
    alone = make_noise_fn(keys[3:4], (2, 2, 1), jnp.float64)
    np.testing.assert_array_equal(alone(7)[0], noise_fn(7)[3])
    assert len(np.unique(np.stack([noise_fn(t) for t in range(3)]))) == 3 * 5 * 4


def test_a_respaced_denoiser_calls_the_network_with_the_timesteps_of_the_full_chain():
    betas, timesteps = BETAS["cosine"](T), space_timesteps(T, "7,3")
    schedule = make_schedule(respace_betas(betas, timesteps), dtype=jnp.float64)
    seen = []

    def spy(x_t, level, **given):
        seen.append((level, given))
        return Prediction(x_t, x_t)

    x_t, steps = draw_normal(0, (10, 2, 2, 1)), jnp.arange(10)
    make_reverse_fn(schedule, respace_denoiser(spy, timesteps), "fixed_small")(x_t, steps)
    respace_denoiser(spy, timesteps)(x_t, seen[0][0]._replace(t=steps), x_self_cond=1)
    (level, given), (_, given_later) = seen
    visited = timesteps[-2::-1]
    np.testing.assert_array_equal(level.t, visited)
    np.testing.assert_allclose(level.signal, SCHEDULE.sqrt_alphas_cumprod[visited], rtol=1e-10)
    assert (given, given_later) == ({}, {"x_self_cond": 1})
