"""Gaussian data with correlated pixels, for which every sampler's result is known exactly."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_ddpm.process.types import Prediction


def to_image(vector):
    """Make a vector one image with a single row of pixels."""
    return jnp.asarray(vector, jnp.float64).reshape(1, 1, -1, 1)


def make_gaussian_denoiser(mean, cov):
    """The exact denoiser of data N(mean, cov): E[x_0 | x_t] of jointly Gaussian vectors."""
    mean, cov = jnp.asarray(mean, jnp.float64), jnp.asarray(cov, jnp.float64)

    def denoise(x_t, level, **given):
        seen = level.signal**2 * cov + level.sigma**2 * jnp.eye(len(mean))
        gain = level.signal * jnp.linalg.solve(seen, cov).T
        x_0 = (mean + gain @ (x_t.ravel() - level.signal * mean)).reshape(x_t.shape)
        return Prediction(x_0, (x_t - level.signal * x_0) / level.sigma)

    return denoise


def linearize_steps(sampler, denoise, levels, size):
    """Write every step of a chain as x -> A x + B noise + c; return all A, all B and all c.

    The sampler's state must be x_t alone, or a fresh state must work as well.
    """

    def affine(cur, nxt):
        def out(x, noise):
            state = sampler.init(to_image(x))
            return sampler.step(state, to_image(noise), cur, nxt, denoise)[0].x_t.ravel()

        zero = jnp.zeros(size)
        return *jax.jacobian(out, (0, 1))(zero, zero), out(zero, zero)

    cur, nxt = jax.tree.map(lambda a: a[:-1], levels), jax.tree.map(lambda a: a[1:], levels)
    return [np.asarray(field) for field in jax.jit(jax.vmap(affine))(cur, nxt)]


def propagate_moments(steps, mean, cov):
    """Turn mean and covariance of x_T into mean and covariance of the final image."""
    for a, b, c in zip(*steps, strict=True):
        mean, cov = a @ mean + c, a @ cov @ a.T + b @ b.T
    return mean, cov


def compute_moments(sampler, denoise, levels, size):
    """Compute mean and covariance of the final image if x_T is standard normal."""
    return propagate_moments(
        linearize_steps(sampler, denoise, levels, size), np.zeros(size), np.eye(size)
    )
