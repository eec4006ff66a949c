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
from jax_ddpm.samplers import SamplerState, ddim, ddpm, draw_noise, sample
from jax_ddpm.samplers.base import choose_frames
from tests.shared.mixture import make_gaussian_denoiser

SAMPLERS = {
    "ddpm small": ddpm("fixed_small"),
    "ddpm large": ddpm("fixed_large"),
    "ddim 0": ddim(0.0),
    "ddim 0.5": ddim(0.5),
    "ddim 1": ddim(1.0),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def make_levels(T, S, spacing="trailing", name="linear", dtype=jnp.float64):
    return level_at(named_schedule(name, T, dtype=dtype), jnp.asarray(timestep_grid(T, S, spacing)))


def draw_fixed_noise(S, shape):
    """Draw the noise of S steps and, last, x_T beforehand, which compiles faster."""
    return jnp.asarray(np.random.default_rng(0).standard_normal((S + 1, *shape)))


def compute_moments(sampler, denoise, levels, start=(0.0, 1.0)):
    """Compute the final image's moments: with Gaussian data each step is a x + b noise + c."""

    def coefficients(cur, nxt):
        x, noise = (jnp.array(v, jnp.float64).reshape(3, 1, 1, 1) for v in ([0, 1, 0], [0, 0, 1]))
        out = sampler.step(SamplerState(x), noise, cur, nxt, denoise)[0].x_t.ravel()
        return out[1] - out[0], out[2] - out[0], out[0]

    cur, nxt = jax.tree.map(lambda a: a[:-1], levels), jax.tree.map(lambda a: a[1:], levels)
    mean, variance = start[0], start[1] ** 2
    for a, b, c in np.stack(jax.jit(jax.vmap(coefficients))(cur, nxt), axis=1):
        mean, variance = a * mean + c, a**2 * variance + b**2
    return mean, variance**0.5


@every_sampler
def test_a_thousand_steps_reach_gaussian_data(sampler):
    mean, std = compute_moments(sampler, make_gaussian_denoiser(0.3, 0.5), make_levels(1000, 1000))
    # Measured, mean: -1e-3 for ddim 0 (x_T lacks signal_T mu = 0.002), -3e-6 for ancestral steps.
    # Measured, std: -4e-3 to 8e-4; the error is of order 1 / T.
    assert abs(mean - 0.3) < 2e-3
    assert abs(std - 0.5) < 5e-3


def test_each_variance_of_ddpm_is_exact_for_the_data_where_it_is_optimal():
    levels = make_levels(1000, 1000)
    # beta-tilde: a single image. Measured: 0 and 0.
    mean, std = compute_moments(ddpm("fixed_small"), make_gaussian_denoiser(0.3, 0.0), levels)
    np.testing.assert_allclose([mean, std], [0.3, 0.0], rtol=0, atol=1e-9)
    # beta: N(0, 1), which stays N(0, 1) up to the last step, where no noise is added.
    mean, std = compute_moments(ddpm("fixed_large"), make_gaussian_denoiser(0.0, 1.0), levels)
    np.testing.assert_allclose([mean, std**2], [0, 1 - 1e-4], rtol=1e-10)  # measured: 1e-14


@pytest.mark.parametrize("name", ["ddpm small", "ddim 0", "ddim 0.5"])
def test_a_single_image_is_reached_in_any_number_of_steps(name):
    for S in (1, 20):
        found = compute_moments(
            SAMPLERS[name], make_gaussian_denoiser(0.3, 0.0), make_levels(1000, S)
        )
        np.testing.assert_allclose(found, [0.3, 0.0], rtol=0, atol=1e-9)  # measured: 0


def test_ddim_keeps_a_known_noise():
    x_0, noise = jax.random.normal(jax.random.key(0), (2, 2, 3, 3, 1), jnp.float64)
    levels = make_levels(1000, 7)
    x_T = add_noise(jax.tree.map(lambda a: a[0], levels), x_0, noise)
    found, trace = sample(
        ddim(),
        lambda x_t, level: Prediction(x_0, noise),
        levels,
        x_T,
        lambda i: noise,
        trace=lambda state, prediction: state.x_t,
    )
    np.testing.assert_allclose(found, x_0, rtol=0, atol=1e-12)  # measured: 0
    for i in range(7):
        level = jax.tree.map(lambda a, i=i: a[i + 1], levels)
        expected = add_noise(level, x_0, noise)
        np.testing.assert_allclose(trace[i], expected, rtol=0, atol=1e-12)  # measured: 4e-16


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_ddim_with_eta_one_on_all_timesteps_is_ddpm_with_the_small_variance(name):
    levels, noises = make_levels(50, 50, name=name), draw_fixed_noise(50, (2, 3, 3, 1))
    x_T, noise_fn = noises[-1], lambda i: noises[i]
    denoise = make_gaussian_denoiser(0.2, 0.6)
    one, other = (
        sample(sampler, denoise, levels, x_T, noise_fn)[0]
        for sampler in (ddim(1.0), ddpm("fixed_small"))
    )
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)  # measured: 2e-15
    third = sample(ddim(0.9), denoise, levels, x_T, noise_fn)[0]
    assert jnp.abs(third - other).max() > 1e-3


@every_sampler
def test_no_noise_is_added_on_the_last_step(sampler):
    levels = make_levels(100, 4)
    cur, nxt = (jax.tree.map(lambda a, i=i: a[i], levels) for i in (-2, -1))
    x_t = jnp.full((1, 2, 2, 1), 0.4)
    outs = [
        sampler.step(SamplerState(x_t), noise * x_t, cur, nxt, make_gaussian_denoiser(0.2, 0.6))
        for noise in (0, 100)
    ]
    np.testing.assert_array_equal(outs[0][0].x_t, outs[1][0].x_t)
    np.testing.assert_allclose(outs[0][0].x_t, outs[0][1].x_0, rtol=1e-13)  # measured: 0


def test_a_batch_split_in_two_gives_the_same_images():
    levels, keys = make_levels(50, 5), jax.random.split(jax.random.key(0), 4)

    @jax.jit
    def images(keys):
        x_T, noise_fn = draw_noise(keys, (3, 3, 1), jnp.float64)
        return sample(ddpm("fixed_small"), make_gaussian_denoiser(0.2, 0.6), levels, x_T, noise_fn)[
            0
        ]

    together = images(keys)
    np.testing.assert_array_equal(jnp.concatenate([images(keys[:1]), images(keys[1:])]), together)
    assert len(np.unique(together)) == together.size


def test_every_step_of_every_image_has_its_own_standard_normal_noise():
    x_T, noise_fn = draw_noise(jax.random.split(jax.random.key(0), 100), (5, 5, 1))
    drawn = np.stack([x_T, *(noise_fn(i) for i in range(10))])
    assert drawn.dtype == np.float32
    assert len(np.unique(drawn)) > 0.99 * drawn.size  # float32 noise may repeat by chance
    # Five standard errors of 27,500 values. Measured: 1.2 and 2.1 of them
    assert abs(drawn.mean()) < 5 / drawn.size**0.5
    assert abs(drawn.std() - 1) < 5 / (2 * drawn.size) ** 0.5


def draw_frames(num_steps, num_frames):
    noises = draw_fixed_noise(num_steps, (2, 3, 3, 1))
    return sample(
        ddpm("fixed_small"),
        make_gaussian_denoiser(0.2, 0.6),
        make_levels(100, num_steps),
        noises[-1],
        lambda i: noises[i],
        trace=lambda state, prediction: state.x_t,
        num_frames=num_frames,
    )


def test_frames_are_spread_evenly_and_end_with_the_image():
    x_0, every = draw_frames(10, None)
    _, few = draw_frames(10, 3)
    assert every.shape == (10, *x_0.shape)
    np.testing.assert_array_equal(every[-1], x_0)
    np.testing.assert_array_equal(few, every[jnp.array([0, 5, 9])])


@pytest.mark.parametrize(
    ("num_steps", "num_frames", "expected"),
    [(10, 10, list(range(10))), (10, 1, [9]), (5, 50, [0, 1, 2, 3, 4]), (1, 3, [0])],
)
def test_there_are_at_most_as_many_frames_as_steps(num_steps, num_frames, expected):
    assert choose_frames(num_steps, num_frames).tolist() == expected


def test_a_hundred_frames_of_a_thousand_steps_are_chosen_as_in_pulfers_gifs():
    """His loop keeps step i where i is in linspace(0, T, 100).astype(uint), and the last."""
    T = 1000
    wanted = np.linspace(0, T, 100).astype(np.uint)
    expected = [i for i, t in enumerate(reversed(range(T))) if i in wanted or t == 0]
    assert choose_frames(T, 100).tolist() == expected
    assert len(expected) == 100


def test_no_frames_are_kept_without_a_trace():
    x_T = jnp.zeros((1, 2, 2, 1))
    _, kept = sample(
        ddim(), make_gaussian_denoiser(0.0, 1.0), make_levels(10, 2), x_T, lambda i: x_T
    )
    assert kept == ()


def test_learned_variances_reach_from_the_small_to_the_large_one():
    levels, noises = make_levels(100, 5, name="cosine"), draw_fixed_noise(5, (2, 3, 3, 1))

    @partial(jax.jit, static_argnums=0)
    def chain(variance, raw):
        def denoise(x_t, level):
            return make_gaussian_denoiser(0.2, 0.6)(x_t, level)._replace(raw_variance=raw)

        return sample(ddpm(variance), denoise, levels, noises[-1], lambda i: noises[i])[0]

    ones = jnp.ones_like(noises[0])
    found = [chain("learned_range", -ones), chain("learned_range", ones)]
    expected = [chain("fixed_small", ones), chain("fixed_large", ones)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)  # measured: 2e-16
    assert jnp.abs(expected[0] - expected[1]).max() > 1e-2


def test_a_learned_variance_can_be_its_own_logarithm():
    levels = make_levels(100, 5)
    cur, nxt = (jax.tree.map(lambda a, i=i: a[i], levels) for i in (1, 2))
    x_t, raw = jnp.full((1, 2, 2, 1), 0.4), jnp.arange(-4.0, 0.0).reshape(1, 2, 2, 1)

    def denoise(x_t, level):
        return make_gaussian_denoiser(0.2, 0.6)(x_t, level)._replace(raw_variance=raw)

    steps = [
        ddpm("learned").step(SamplerState(x_t), noise * jnp.ones_like(x_t), cur, nxt, denoise)[0]
        for noise in (0.0, 1.0)
    ]
    np.testing.assert_allclose(steps[1].x_t - steps[0].x_t, jnp.exp(raw / 2), rtol=1e-12)
    with pytest.raises(ValueError, match="'learned' needs a network that predicts it"):
        ddpm("learned").step(SamplerState(x_t), x_t, cur, nxt, make_gaussian_denoiser(0.2, 0.6))
