"""Data with exactly known denoisers and quantiles, on a schedule that is smooth in t."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import Prediction

# A mixture of two normal distributions
WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), np.array([0.25, 0.35])
T = 1000
BETA_MIN, BETA_MAX = 0.1, 20.0  # the linear schedule as T grows: beta(t / T) per unit of t / T


def make_gaussian_denoiser(mu, s):
    """The exact denoiser of data N(mu, s^2): E[x_0 | x_t] of two jointly Gaussian variables."""

    def denoise(x_t, level):
        gain = level.signal * s**2 / (level.signal**2 * s**2 + level.sigma**2)
        x_0 = mu + gain * (x_t - level.signal * mu)
        return Prediction(x_0, (x_t - level.signal * x_0) / level.sigma)

    return denoise


def mixture_denoiser(x_t, level):
    """The exact denoiser of the mixture: its components' denoisers, weighted by responsibility."""
    variance = level.signal**2 * STDS**2 + level.sigma**2
    apart = jnp.expand_dims(x_t, -1) - (level.signal * MEANS).reshape(1, 1, 1, 1, 2)
    variance, stds, means, weights = (
        a.reshape(1, 1, 1, 1, 2) for a in (variance, STDS, MEANS, WEIGHTS)
    )
    log_part = -(apart**2) / (2 * variance) - jnp.log(variance) / 2 + jnp.log(weights)
    parts = means + level.signal * stds**2 / variance * apart
    x_0 = jnp.sum(jax.nn.softmax(log_part, -1) * parts, axis=-1)
    return Prediction(x_0, (x_t - level.signal * x_0) / level.sigma)


def mixture_cdf(x, signal, sigma):
    """The distribution function of the mixture at a noise level, for a vector x."""
    stds = np.sqrt(signal**2 * STDS**2 + sigma**2)
    return (WEIGHTS * ndtr((x[:, None] - signal * MEANS) / stds)).sum(-1)


def mixture_quantiles(parts, signal, sigma):
    """The x at which the distribution function of the mixture is `parts`, by bisection."""
    low, high = np.full(parts.shape, -10.0), np.full(parts.shape, 10.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = mixture_cdf(middle, signal, sigma) < parts
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return middle


def level_of_t(t):
    """The level of any t in 0..T on the smooth schedule."""
    u = jnp.asarray(t) / T
    log_signal = -((BETA_MAX - BETA_MIN) * u**2 / 4 + BETA_MIN * u / 2)
    return Level(u * T, jnp.exp(log_signal), jnp.sqrt(-jnp.expm1(2 * log_signal)))


def level_of_sigma(sigma):
    """The level with this sigma / signal on the smooth schedule."""
    signal = 1 / jnp.sqrt(1 + sigma**2)
    a, b = (BETA_MAX - BETA_MIN) / 4, BETA_MIN / 2
    u = (-b + jnp.sqrt(b**2 - 4 * a * jnp.log(signal))) / (2 * a)
    return Level(u * T, signal, signal * sigma)


def make_levels(num_steps, steps, start=600.0, end=50.0, *, clean=False):
    """Make S + 1 levels in equal steps of log-SNR or t; `clean` makes the last the clean image."""
    parts = np.linspace(0, 1, num_steps + 1 - clean)
    if steps == "t":
        levels = level_of_t(start + parts * (end - start))
    else:
        a, b = (jnp.log(at.sigma / at.signal) for at in map(level_of_t, (start, end)))
        levels = level_of_sigma(jnp.exp(a + parts * (b - a)))
    if not clean:
        return levels
    return Level(*(jnp.append(f, end) for f, end in zip(levels, (-1, 1, 0), strict=True)))


def pick_levels(levels, i):
    """Pick the level or levels `i` of several."""
    return jax.tree.map(lambda field: field[i], levels)
