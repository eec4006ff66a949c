from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.guidance import (
    classifier_gradient,
    guide,
    guide_network,
    guide_score,
    rescale_guided,
)
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.predictions import to_prediction, v_from
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.samplers import ddim, ddpm
from tests.shared.gaussian import compute_moments, make_gaussian_denoiser

NULL = 3
SCHEDULE = named_schedule("linear", 100, dtype=jnp.float64)
X_T = jnp.asarray(np.random.default_rng(0).standard_normal((4, 2, 3, 2)))
T = jnp.array([0, 10, 50, 99])
LABEL = jnp.array([0, 1, 2, 0])


def network(params, x_t, t, *, label, x_self_cond=None):
    """A function of all its arguments, image by image."""
    t, label = (a.reshape(-1, 1, 1, 1).astype(x_t.dtype) for a in (t, label))
    out = jnp.sin(params * x_t + label) + 0.01 * t * jnp.cos(x_t * label)
    return out if x_self_cond is None else out + x_self_cond**2


def test_scale_one_is_the_conditional_call_and_zero_the_unconditional_one():
    cond, uncond = (network(2.0, X_T, T, label=label) for label in (LABEL, 0 * LABEL + NULL))
    for scale, expected in ((1.0, cond), (0.0, uncond)):
        found = guide_network(network, NULL, scale)(2.0, X_T, T, label=LABEL)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)  # measured: 2e-16
    assert jnp.abs(cond - uncond).max() > 0.1


@pytest.mark.parametrize("given", [{}, {"x_self_cond": X_T / 3}])
def test_one_call_of_twice_the_batch_is_two_calls(given):
    calls = []

    def spy(params, x_t, *args, **kwargs):
        calls.append(x_t.shape)
        return network(params, x_t, *args, **kwargs)

    found = guide_network(spy, NULL, 2.5)(2.0, X_T, T, label=LABEL, **given)
    cond, uncond = (network(2.0, X_T, T, label=a, **given) for a in (LABEL, 0 * LABEL + NULL))
    np.testing.assert_array_equal(found, uncond + 2.5 * (cond - uncond))
    assert calls == [(8, 2, 3, 2)]


def test_guidance_stops_outside_its_interval():
    cond = network(2.0, X_T, T, label=LABEL)
    full = guide_network(network, NULL, 3.0)(2.0, X_T, T, label=LABEL)
    found = guide_network(network, NULL, 3.0, interval=(10, 50))(2.0, X_T, T, label=LABEL)
    np.testing.assert_array_equal(found, jnp.stack([cond[0], full[1], full[2], cond[3]]))
    assert jnp.abs(full - cond).max((1, 2, 3)).min() > 0.1


def test_rescaling_gives_each_image_the_spread_of_the_conditional_one():
    cond, uncond = (network(2.0, X_T, T, label=a) for a in (LABEL, 0 * LABEL + NULL))
    guided = guide(uncond, cond, 4.0)
    np.testing.assert_array_equal(rescale_guided(guided, cond, 0.0), guided)
    full = guide_network(network, NULL, 4.0, rescale=1.0)(2.0, X_T, T, label=LABEL)
    axes = (1, 2, 3)
    np.testing.assert_allclose(full.std(axes), cond.std(axes), rtol=1e-14)  # measured: 2e-16
    assert jnp.abs(guided.std(axes) / cond.std(axes) - 1).min() > 0.1
    faint = rescale_guided(0.01 * guided, cond, 1.0)  # with a standard deviation far below 1
    np.testing.assert_allclose(faint.std(axes), cond.std(axes), rtol=1e-13)  # measured: 2e-16
    half = rescale_guided(guided, cond, 0.5)
    np.testing.assert_allclose(half, (full + guided) / 2, rtol=1e-14)  # measured: 0
    flat = jnp.zeros_like(cond)  # an untrained network's output has no spread
    np.testing.assert_array_equal(rescale_guided(flat, flat, 0.7), flat)


def test_a_learned_variance_comes_from_the_conditional_output():
    found = guide_network(network, NULL, 3.0, learned_variance=True)(2.0, X_T, T, label=LABEL)
    cond, plain = (
        apply_fn(2.0, X_T, T, label=LABEL)
        for apply_fn in (network, guide_network(network, NULL, 3.0))
    )
    np.testing.assert_array_equal(found[..., 1:], cond[..., 1:])
    np.testing.assert_array_equal(found[..., :1], plain[..., :1])


def test_eps_x_0_and_v_are_guided_alike():
    level = level_at(SCHEDULE, T)

    def predict_as(prediction_type):
        def apply_fn(params, x_t, t, *, label):
            level = level_at(SCHEDULE, t)
            x_0, eps, _ = to_prediction(network(params, x_t, t, label=label), x_t, level, "eps")
            return {"eps": eps, "x_0": x_0, "v": v_from(level, x_0, eps)}[prediction_type]

        guided = guide_network(apply_fn, NULL, 3.0)
        given = {"prediction_type": prediction_type, "clip_x_0": False, "label": LABEL}
        return make_denoise_fn(guided, 2.0, **given)(X_T, level)

    expected = predict_as("eps")
    for prediction_type in ("x_0", "v"):
        for mine, theirs in zip(predict_as(prediction_type)[:2], expected[:2], strict=True):
            error = jnp.abs(mine - theirs).max() / jnp.abs(theirs).max()
            assert error < 1e-12  # measured: 3e-15


@pytest.mark.parametrize("scale", [pytest.param(0.5, marks=pytest.mark.slow), 3.0])
def test_two_gaussians_give_the_score_of_their_product(scale):
    """p(x_t)^(1 - scale) p(x_t | label)^scale, whose score is known in closed form."""
    mean, std = jnp.array([0.5, 0.0]), jnp.array([0.3, 1.0])  # label 0, and no label

    def exact(params, x_t, t, *, label):
        level = jax.tree.map(lambda a: a.reshape(-1, 1, 1, 1), level_at(SCHEDULE, t))
        m, s = (a[label].reshape(-1, 1, 1, 1) for a in (mean, std))
        spread = level.signal**2 * s**2 + level.sigma**2
        return level.sigma * (x_t - level.signal * m) / spread

    def log_product(x, level):
        spread = level.signal**2 * std**2 + level.sigma**2
        logs = -((x - level.signal * mean) ** 2) / (2 * spread)
        return scale * logs[0] + (1 - scale) * logs[1]

    found = guide_network(exact, 1, scale)(None, X_T, T, label=jnp.zeros(4, int))
    for i in range(4):
        level = level_at(SCHEDULE, T[i])
        score = jax.vmap(jax.grad(partial(log_product, level=level)))(X_T[i].ravel())
        expected = -level.sigma * score.reshape(X_T[i].shape)
        np.testing.assert_allclose(found[i], expected, rtol=1e-12, atol=1e-13)  # measured: 3e-15


PRIOR, NOISE, SEEN = (0.3, 0.5), 0.4, -0.6  # N(0.3, 0.5^2), seen through noise of 0.4 as -0.6
POSTERIOR_VARIANCE = 1 / (1 / PRIOR[1] ** 2 + 1 / NOISE**2)
POSTERIOR_MEAN = POSTERIOR_VARIANCE * (PRIOR[0] / PRIOR[1] ** 2 + SEEN / NOISE**2)


def make_gaussian_classifier(schedule):
    """log p(seen | x_t): x_0 is seen through noise, and x_0 given x_t is Gaussian."""
    mean, std = PRIOR

    def log_prob(x_t, t, label):
        level = jax.tree.map(lambda a: a.reshape(-1, 1, 1, 1), level_at(schedule, t))
        seen = level.signal**2 * std**2 + level.sigma**2
        x_0 = mean + level.signal * std**2 / seen * (x_t - level.signal * mean)
        spread = std**2 * level.sigma**2 / seen + NOISE**2
        return (-((SEEN - x_0) ** 2) / (2 * spread)).sum((1, 2, 3))

    return log_prob


@pytest.mark.parametrize(
    ("kind", "bounds"),
    # Measured, mean and standard deviation: 4.9e-4, 1.5e-3; 9.8e-7, 3.8e-3; 8.6e-3, 1.4e-3.
    [("ddim", (1e-3, 3e-3)), ("ddpm", (1e-4, 5e-3)), ("ddpm by its mean", (1.2e-2, 3e-3))],
)
def test_a_classifier_turns_the_prior_into_the_posterior(kind, bounds):
    schedule = named_schedule("linear", 1000, dtype=jnp.float64)
    levels = level_at(schedule, jnp.arange(999, -2, -1))
    gradient = classifier_gradient(make_gaussian_classifier(schedule), jnp.zeros(1, int))
    denoise = make_gaussian_denoiser([PRIOR[0]], [[PRIOR[1] ** 2]])
    if kind == "ddpm by its mean":
        sampler = ddpm("fixed_small", gradient)
    else:
        sampler = ddim() if kind == "ddim" else ddpm("fixed_small")
        denoise = guide_score(denoise, gradient)
    (mean,), ((variance,),) = compute_moments(sampler, denoise, levels, 1)
    errors = abs(mean - POSTERIOR_MEAN), abs(variance**0.5 - POSTERIOR_VARIANCE**0.5)
    assert all(error < bound for error, bound in zip(errors, bounds, strict=True)), errors
    assert abs(mean - PRIOR[0]) > 0.3


def test_classifier_guidance_keeps_x_0_and_eps_consistent_and_the_variance_unchanged():
    level = level_at(SCHEDULE, jnp.array(40))
    gradient = classifier_gradient(make_gaussian_classifier(SCHEDULE), LABEL, 2.0)
    one_channel = X_T[..., :1]

    def doubled(params, x_t, t, *, label):
        return jnp.concatenate([network(params, x_t, t, label=label)] * 2, axis=-1)

    plain = make_denoise_fn(doubled, 2.0, learned_variance=True, label=LABEL)
    found, before = guide_score(plain, gradient)(one_channel, level), plain(one_channel, level)
    again = level.signal * found.x_0 + level.sigma * found.eps
    np.testing.assert_allclose(again, one_channel, rtol=0, atol=1e-13)  # measured: 2e-16
    shift = level.sigma * gradient(one_channel, level)
    np.testing.assert_array_equal(found.eps, before.eps - shift)
    np.testing.assert_array_equal(found.raw_variance, before.raw_variance)
