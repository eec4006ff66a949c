"""What single solvers do beyond the conformance tests: options, identities, inversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.process.predictions import eps_from_x_0
from jax_ddpm.samplers import (
    SamplerState,
    ddim,
    ddim_inverse,
    dpmpp_2m,
    dpmpp_2m_inverse,
    dpmpp_3m,
    euler,
    euler_ancestral,
    heun,
    run_chain,
    sample,
    unipc,
)
from jax_ddpm.samplers.multistep import phi
from tests.shared.mixture import (
    level_of_sigma,
    make_gaussian_denoiser,
    make_levels,
    mixture_denoiser,
    mixture_quantiles,
    pick_levels,
)


def measure_error(sampler, num_steps, h_first=False, up=False):
    """Measure the largest error of 64 particles; with `h_first` two very short steps come first."""
    levels = make_levels(num_steps, "log_snr")
    levels = pick_levels(levels, slice(None, None, -1)) if up else levels
    if h_first:
        log_sigmas = np.log(np.asarray(levels.sigma / levels.signal))
        short = (log_sigmas[0] - log_sigmas[1]) ** 2 / 4
        log_sigmas = np.insert(log_sigmas, 1, log_sigmas[0] - short * np.array([1, 2]))
        levels = level_of_sigma(jnp.exp(log_sigmas))
    parts = np.linspace(0.03, 0.97, 64)
    start, end = (
        mixture_quantiles(parts, float(level.signal), float(level.sigma)).reshape(1, 8, 8, 1)
        for level in (pick_levels(levels, 0), pick_levels(levels, -1))
    )
    step = jax.jit(lambda *given: sampler.step(*given, mixture_denoiser)[0])
    state = sampler.init(jnp.asarray(start))
    for i in range(len(levels.t) - 1):
        state = step(
            state, jnp.zeros_like(start), pick_levels(levels, i), pick_levels(levels, i + 1)
        )
    return np.abs(state.x_t - end).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (dpmpp_3m(curvature="exact"), 3),  # measured: 3.06
        (dpmpp_3m(), 2),  # measured: 2.06, as published
        (dpmpp_2m(correction="heun"), 2),  # measured: 2.00
        (unipc(order=3), 4),  # measured: 4.16
    ],
)
def test_a_solver_has_its_order_apart_from_its_first_steps(sampler, order):
    """A multistep solver begins with first order; two very short steps make that invisible."""
    coarse, fine = (measure_error(sampler, num_steps, h_first=True) for num_steps in (64, 128))
    np.testing.assert_allclose(np.log2(coarse / fine), order, atol=0.25)


def sample_mixture(sampler, levels, x, noises):
    return sample(sampler, mixture_denoiser, levels, x, lambda i: noises[i])[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [(euler(), ddim()), (euler_ancestral(), ddim(1.0))],
    ids=["without noise", "with noise"],
)
def test_euler_is_ddim_where_the_variance_is_preserved(one, other):
    levels = make_levels(6, "log_snr", clean=True)
    noises = jnp.asarray(np.random.default_rng(0).standard_normal((7, 1, 2, 2, 1)))
    found, expected = (
        sample_mixture(sampler, levels, noises[-1], noises) for sampler in (one, other)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)  # measured: 2e-15


def measure_churned_std(churn, num_steps, **settings):
    """Measure the spread of N(0, 1/4) after churn, relative to the exact one, and the noise."""
    levels, mine = make_levels(num_steps, "log_snr", 600.0, 50.0), make_gaussian_denoiser(0.0, 0.5)
    sampler = heun(churn=churn, num_steps=num_steps, level_of_sigma=level_of_sigma, **settings)

    def one_hot(i):
        return jnp.zeros((1, num_steps + 1, 1, 1)).at[0, i].set(1)

    x = run_chain(sampler, mine, levels, one_hot(0), lambda i: one_hot(i + 1))[0].ravel()
    first, last = (
        (level.signal * 0.5) ** 2 + level.sigma**2
        for level in (pick_levels(levels, 0), pick_levels(levels, -1))
    )
    return ((x[0] ** 2 * first + jnp.sum(x[1:] ** 2)) / last) ** 0.5, x[1:]


@pytest.mark.slow
def test_churn_keeps_the_distribution_and_adds_noise_only_within_its_limits():
    ratio, noise = measure_churned_std(8.0, 80)
    assert abs(ratio - 1) < 5e-3  # measured: 1.5e-3, and a quarter of it in twice the steps
    assert jnp.all(noise != 0)
    louder = measure_churned_std(8.0, 80, churn_noise=1.1)[0]
    np.testing.assert_allclose(louder, 1.1, rtol=0, atol=5e-3)  # measured: 1.6e-3
    ratio, noise = measure_churned_std(8.0, 20, churn_min=0.2, churn_max=0.9)
    assert 2 < jnp.sum(noise != 0) < 18
    np.testing.assert_array_equal(measure_churned_std(0.0, 20)[1], 0)


@pytest.mark.parametrize(
    ("inverse", "sampler", "limit"),
    [
        (ddim_inverse(), ddim(), 2e-2),  # measured: 2e-3
        (dpmpp_2m_inverse(), dpmpp_2m(), 2e-4),  # measured: 2e-5
    ],
    ids=["ddim", "dpmpp_2m"],
)
def test_inversion_finds_the_noise_that_the_sampler_turns_into_the_image(inverse, sampler, limit):
    """Each way makes an error of the order of the sampler in the step."""
    levels = make_levels(300, "t", 600.0, 1.0, clean=True)
    up = type(levels)(*(field[::-1] for field in levels))
    image = jnp.asarray([-0.7, 0.1, 0.6]).reshape(1, 3, 1, 1)

    def denoise(x_t, level):  # like a network that predicts eps, whose x_0 needs no sigma
        exact = pick_levels(levels, jnp.argmax(levels.t == level.t))
        x_0 = mixture_denoiser(x_t, exact).x_0
        eps = eps_from_x_0(exact, x_t, x_0)
        return mixture_denoiser(x_t, exact)._replace(
            x_0=(x_t - level.sigma * eps) / level.signal, eps=eps
        )

    nothing = jnp.zeros((300, 1, 3, 1, 1))
    noise = sample(inverse, denoise, up, image, lambda i: nothing[i])[0]
    back = sample(sampler, denoise, levels, noise, lambda i: nothing[i])[0]
    np.testing.assert_allclose(back, image, rtol=0, atol=limit)
    assert jnp.abs(noise - image).max() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("correction", ["midpoint", "heun"])
def test_multistep_inversion_has_second_order(correction):
    coarse, fine = (
        measure_error(dpmpp_2m_inverse(correction=correction), num_steps, up=True)
        for num_steps in (64, 128)
    )
    np.testing.assert_allclose(np.log2(coarse / fine), 2, atol=0.25)  # measured: 1.99, 1.98


def test_multistep_inversion_reaches_pure_noise_in_images_with_levels_of_their_own():
    """To pure noise the step is of first order, and the image of each grid is the same alone."""
    up = [
        pick_levels(make_levels(5, "t", at, clean=True), slice(None, None, -1)) for at in (600, 900)
    ]
    up[1] = up[1]._replace(signal=up[1].signal.at[-1].set(0), sigma=up[1].sigma.at[-1].set(1))
    both = jax.tree.map(lambda *fields: jnp.stack(fields, axis=1), *up)
    images = jnp.asarray([-0.7, 0.6]).reshape(2, 1, 1, 1)
    denoise, sampler = make_gaussian_denoiser(0.3, 0.5), dpmpp_2m_inverse()

    def invert(levels):
        return sample(sampler, denoise, levels, images, lambda i: 0 * images)[0]

    found = invert(both)
    assert jnp.isfinite(found).all()
    for i, levels in enumerate(up):
        # Measured: 6e-17
        np.testing.assert_allclose(found[i], invert(levels)[i], rtol=0, atol=1e-12)


def test_ddim_goes_up_without_an_infinite_variance():
    levels = make_levels(5, "t", 50.0, 600.0)
    step = ddim().step(
        SamplerState(jnp.ones((1, 1, 1, 1))),
        jnp.ones((1, 1, 1, 1)),
        pick_levels(levels, 0),
        pick_levels(levels, 1),
        mixture_denoiser,
    )[0]
    assert jnp.isfinite(step.x_t).all()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_phi_is_accurate_on_both_sides_of_the_switch(k):
    """Against the integral of exp((1 - s) z) s^(k-1) / (k-1)! over 0..1, by Gauss's rule."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    s, w = (nodes + 1) / 2, weights / 2 / np.prod(np.arange(1, k), dtype=float)
    for z in (-20.0, -3.0, -0.5001, -0.4999, -1e-3, 0.0, 0.3):
        expected = np.sum(w * np.exp((1 - s) * z) * s ** (k - 1))
        # Measured: 2e-14, at the seam of k = 4
        np.testing.assert_allclose(phi(k, jnp.asarray(z)), expected, rtol=1e-12)
