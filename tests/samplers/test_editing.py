from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.process.diffusion import add_noise
from jax_ddpm.process.grids import timestep_grid
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.process.types import Prediction
from jax_ddpm.samplers import Sampler, SamplerState, ddim, ddpm, sample
from jax_ddpm.samplers.editing import (
    allow_steps_up,
    find_latents,
    find_start,
    inpaint,
    lerp,
    mix_noisy,
    renoise,
    repaint,
    repaint_grid,
    repaint_order,
    slerp,
)
from tests.shared.gaussian import (
    compute_moments,
    linearize_steps,
    make_gaussian_denoiser,
    propagate_moments,
    to_image,
)

SCHEDULE = named_schedule("linear_rescaled", 100, dtype=jnp.float64)
MEAN = np.array([0.1, -0.2, 0.3])
COV = np.array([[0.30, 0.24, 0.15], [0.24, 0.40, 0.20], [0.15, 0.20, 0.25]])
IMAGE, KNOWN = to_image([0.8, 0, 0]), to_image([1, 0, 0]) > 0


def find_levels(timesteps):
    return level_at(SCHEDULE, jnp.asarray(timesteps))


def compute_conditional():
    """Compute mean and covariance of the last two pixels given the first."""
    gain = COV[1:, 0] / COV[0, 0]
    return MEAN[1:] + gain * (0.8 - MEAN[0]), COV[1:, 1:] - np.outer(gain, COV[0, 1:])


def measure_errors(sampler, timesteps):
    mean, cov = compute_moments(
        sampler, make_gaussian_denoiser(MEAN, COV), find_levels(timesteps), 3
    )
    np.testing.assert_allclose([mean[0], *cov[0], *cov[:, 0]], [0.8] + 6 * [0], atol=1e-12)  # 0
    true_mean, true_cov = compute_conditional()
    return np.abs(mean[1:] - true_mean).max(), np.abs(cov[1:, 1:] - true_cov).max()


def test_repaint_is_closer_to_the_conditional_distribution_than_replacement():
    """`measure_errors` asserts that the known pixel is exact in both."""
    grid, sampler = timestep_grid(100, 100), ddpm("fixed_small")
    replaced = measure_errors(inpaint(sampler, IMAGE, KNOWN), grid)
    painted = measure_errors(repaint(sampler, IMAGE, KNOWN), repaint_grid(grid, 10, 10))
    # Measured: mean 0.29 and 0.10 (0.16 with 3 resamples), covariance 0.037 and 0.019.
    assert painted[0] < 0.4 * replaced[0]
    assert painted[1] < 0.6 * replaced[1]


@pytest.mark.parametrize(
    "sampler",
    [ddpm("fixed_large"), *(pytest.param(ddim(eta), marks=pytest.mark.slow) for eta in (0, 0.5))],
)
def test_known_pixels_equal_the_noised_image_at_every_level(sampler):
    rng = np.random.default_rng(0)
    image, x_T = jnp.asarray(rng.uniform(-1, 1, (2, 2, 3, 4, 1)))
    known = jnp.asarray(rng.random((1, 3, 4, 1)) < 0.5)
    noises = jnp.asarray(rng.standard_normal((5, 2, 3, 4, 1)))
    levels = find_levels(timestep_grid(100, 5, "leading"))

    def denoise(x_t, level):
        return Prediction(0.9 * x_t, 0.1 * x_t)

    x_0, states = sample(
        inpaint(sampler, image[:1], known),
        denoise,
        levels,
        x_T,
        lambda i: noises[i],
        trace=lambda state, prediction: state.x_t,
    )
    plain, _ = sample(sampler, denoise, levels, x_T, lambda i: noises[i])
    for i in range(5):
        level = jax.tree.map(lambda a, i=i: a[i + 1], levels)
        expected = add_noise(level, jnp.broadcast_to(image[:1], x_T.shape), noises[i])
        kept = jnp.broadcast_to(known, expected.shape)
        # measured: 2e-16
        np.testing.assert_allclose(states[i][kept], expected[kept], rtol=0, atol=1e-14)
    kept = jnp.broadcast_to(known, x_0.shape)
    np.testing.assert_array_equal(x_0[kept], jnp.broadcast_to(image[:1], x_0.shape)[kept])
    # pixels are independent here, so the others stay as they would have been
    np.testing.assert_allclose(x_0[~kept], plain[~kept], rtol=1e-13)  # measured: 3e-16


def list_published_repaint_times(num_steps, jump_length, num_resamples):
    """List the times as the code in the paper's appendix does, with t counted from 0."""
    jumps = {j: num_resamples - 1 for j in range(0, num_steps - jump_length, jump_length)}
    t, times = num_steps, []
    while t >= 1:
        t -= 1
        times.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                times.append(t)
    return [*times, -1]


@pytest.mark.parametrize("settings", [(250, 10, 10), (20, 3, 4), (7, 6, 2), (5, 1, 3), (9, 2, 1)])
def test_the_grid_of_repaint_equals_the_published_one(settings):
    found = repaint_grid(timestep_grid(settings[0], settings[0]), *settings[1:])
    assert found.tolist() == list_published_repaint_times(*settings)
    assert (np.abs(np.diff(found)) == 1).all()


def test_the_grid_of_repaint_goes_up_and_down_any_grid():
    grid = np.array([90, 70, 40, 15, -1])
    assert repaint_order(4, 2, 2).tolist() == [0, 1, 2, 3, 2, 1, 2, 3, 4]
    assert repaint_grid(grid, 2, 2).tolist() == [90, 70, 40, 15, 40, 70, 40, 15, -1]
    assert repaint_grid(grid, 2, 1).tolist() == grid.tolist()


def test_noise_in_two_steps_is_noise_in_one():
    low, middle, high = (level_at(SCHEDULE, jnp.array(t)) for t in (-1, 30, 80))
    x_0, noise = to_image([0.5, -0.3]), to_image([1.0, 1.0])
    np.testing.assert_allclose(
        renoise(low, high, x_0, noise), add_noise(high, x_0, noise), rtol=1e-14
    )
    mean = renoise(middle, high, renoise(low, middle, x_0, 0 * noise), 0 * noise)
    np.testing.assert_allclose(mean, high.signal * x_0, rtol=1e-13)  # measured: 2e-16
    first = renoise(middle, high, renoise(low, middle, 0 * x_0, noise), 0 * noise)
    second = renoise(middle, high, 0 * x_0, noise)
    np.testing.assert_allclose(first**2 + second**2, high.sigma**2 + 0 * x_0, rtol=1e-13)  # 1e-16


def make_counting_sampler():
    """Make a sampler that counts its steps and shows the count in eps."""

    def step(state, noise, cur, nxt, denoise_fn):
        prediction = denoise_fn(state.x_t, cur)
        count = state.memory + 1
        return SamplerState(prediction.x_0, count), prediction._replace(eps=prediction.eps * count)

    return Sampler(lambda x_T: SamplerState(x_T, jnp.zeros(())), step)


def test_steps_up_predict_and_remember_nothing():
    order = [80, 60, 40, 60, 40, -1]
    levels, x_T = find_levels(order), to_image([0.5, 0.7])

    def denoise(x_t, level, x_self_cond):
        return Prediction(x_self_cond + 1, jnp.ones_like(x_t))

    _, (x_0, steps) = sample(
        allow_steps_up(make_counting_sampler()),
        denoise,
        levels,
        x_T,
        lambda i: 0 * x_T,
        self_condition=True,
        trace=lambda state, prediction: (prediction.x_0, prediction.eps),
    )
    assert x_0[:, 0, 0, 0, 0].tolist() == [1, 2, 2, 3, 4]
    assert steps[:, 0, 0, 0, 0].tolist() == [1, 2, 0, 1, 2]


def test_allowing_steps_up_does_not_change_sampling_that_only_goes_down():
    levels, x_T = find_levels(timestep_grid(100, 6, "leading")), to_image([0.5, 0.7, -0.2])
    run = partial(
        sample,
        denoise_fn=make_gaussian_denoiser(MEAN, COV),
        levels=levels,
        x_T=x_T,
        noise_fn=lambda i: jnp.cos(i + x_T),
    )
    # measured: 0
    np.testing.assert_allclose(
        run(allow_steps_up(ddpm("fixed_small")))[0], run(ddpm("fixed_small"))[0], rtol=1e-14
    )


def test_a_chain_from_a_noised_image_starts_below_the_strength():
    grid = timestep_grid(100, 10, "leading")  # 90, 80, ..., 0, -1
    assert [find_start(grid, s, 100) for s in (1.0, 0.91, 0.9, 0.31, 0.001)] == [0, 0, 1, 6, 9]


def test_a_lower_strength_keeps_more_of_the_image():
    """Exact moments: the start is one noised image; more noise ends closer to the data."""
    grid, image = timestep_grid(100, 100), np.array([-0.9])
    levels = jax.tree.map(np.asarray, find_levels(grid))
    steps = linearize_steps(ddpm("fixed_small"), make_gaussian_denoiser([0.3], [[0.25]]), levels, 1)
    found = []
    for strength in (0.02, 0.2, 0.5, 1.0):
        first = find_start(grid, strength, 100)
        start = levels.signal[first] * image, np.eye(1) * levels.sigma[first] ** 2
        mean, cov = propagate_moments([field[first:] for field in steps], *start)
        found.append((mean[0], cov[0, 0]))
    # Measured, mean: -0.88, -0.10, 0.276, 0.300; variance: 0.005, 0.193, 0.2191, 0.2192.
    assert (np.diff(found, axis=0) > 0).all()
    np.testing.assert_allclose(found[0], [-0.9, 0], rtol=0, atol=0.1)
    np.testing.assert_allclose(found[-1], [0.3, 0.25], rtol=0, atol=0.05)


RNG = np.random.default_rng(1)
A, B = (jnp.asarray(RNG.standard_normal((3, 4, 5, 2))) for _ in range(2))


@pytest.mark.parametrize("between", [lerp, slerp])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_interpolation_starts_and_ends_at_the_images(between, dtype):
    a, b, zero = A.astype(dtype), B.astype(dtype), jnp.zeros(3, dtype)
    found = between(a, b, zero), between(a, b, zero + 1)
    assert found[0].dtype == dtype
    # measured: 0
    np.testing.assert_allclose(found, (a, b), rtol=0, atol=4 * jnp.finfo(dtype).eps)


def test_slerp_keeps_the_length_and_turns_evenly():
    b = B * jnp.sqrt((A**2).sum((1, 2, 3)) / (B**2).sum((1, 2, 3))).reshape(3, 1, 1, 1)

    def angle(x, y):
        norms = (x**2).sum((1, 2, 3)) * (y**2).sum((1, 2, 3))
        return jnp.arccos((x * y).sum((1, 2, 3)) / jnp.sqrt(norms))

    for weight in (0.25, 0.5, 0.9):
        found = slerp(A, b, jnp.full(3, weight))
        # measured: 3e-16 and 2e-15
        np.testing.assert_allclose((found**2).sum((1, 2, 3)), (A**2).sum((1, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(angle(A, found), weight * angle(A, b), rtol=1e-12)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, 1 + 1e-9])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_slerp_of_parallel_images_is_a_line(factor, dtype):
    a, weight = A.astype(dtype), jnp.array([0.0, 0.3, 1.0], dtype)
    found = slerp(a, factor * a, weight)
    atol = 4 * jnp.finfo(dtype).eps  # measured: 0
    np.testing.assert_allclose(found, lerp(a, factor * a, weight), rtol=0, atol=atol)
    assert jnp.isfinite(slerp(0 * a, a, weight)).all()


def test_each_image_has_its_own_weight():
    weight = jnp.array([0.0, 0.5, 1.0])
    for between in (lerp, slerp):
        rows = [between(A[i : i + 1], B[i : i + 1], weight[i : i + 1]) for i in range(3)]
        np.testing.assert_allclose(between(A, B, weight), jnp.concatenate(rows), rtol=1e-14)  # 0


def test_noised_images_with_one_noise_mix_to_a_noised_image():
    level, noise = level_at(SCHEDULE, jnp.array(40)), B * 0.3
    weight = jnp.array([0.0, 0.4, 1.0])
    found = mix_noisy(level, (A, A[::-1]), weight, (noise, noise))
    expected = add_noise(level, lerp(A, A[::-1], weight), noise)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)  # measured: 6e-17


def two_peak_denoiser(x_t, level):
    """The exact denoiser of a mixture of N(0.5, 0.2^2) and N(-0.7, 0.1^2) in every pixel."""
    means, stds = (jnp.array(a).reshape(2, 1, 1, 1, 1) for a in ([0.5, -0.7], [0.2, 0.1]))
    seen = (level.signal * stds) ** 2 + level.sigma**2
    away = x_t[None] - level.signal * means
    share = jax.nn.softmax(-(away**2) / (2 * seen) - jnp.log(seen) / 2, axis=0)
    x_0 = (share * (means + level.signal * stds**2 / seen * away)).sum(0)
    return Prediction(x_0, (x_t - level.signal * x_0) / level.sigma)


def measure_inversion_error(num_steps):
    """Measure how far DDIM ends from an image that was inverted."""
    images = jnp.asarray(np.random.default_rng(0).choice([0.5, -0.7, 0.4], (2, 4, 4, 1)))
    grid = timestep_grid(1000, num_steps, "leading")
    levels = level_at(named_schedule("linear", 1000, dtype=jnp.float64), jnp.asarray(grid))
    x_T = find_latents(two_peak_denoiser, levels, images)
    found, _ = sample(ddim(), two_peak_denoiser, levels, x_T, lambda i: 0 * x_T)
    return float(jnp.abs(found - images).max())


def test_inversion_and_ddim_return_to_the_image_with_an_error_that_falls_with_the_steps():
    errors = [measure_inversion_error(num_steps) for num_steps in (50, 200)]
    assert errors[0] < 0.01  # measured: 0.0059
    assert errors[1] < 0.4 * errors[0]  # measured: 0.26


@pytest.mark.slow
def test_the_error_of_inversion_is_of_first_order():
    steps = (50, 100, 200, 500, 1000)
    errors = [measure_inversion_error(num_steps) for num_steps in steps]
    slopes = np.diff(np.log(errors)) / np.diff(np.log(steps))
    # Measured: -0.95, -0.97, -0.99, -0.99.
    np.testing.assert_allclose(slopes, -1, rtol=0, atol=0.1)
