"""The variational bound on the likelihood, term by term: KL divergences, 8-bit pixels, bits.

Pure functions of arrays. Images are [b, h, w, c] in [-1, 1] and consist of 8-bit pixels.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_ddpm.errors import check_choice
from jax_ddpm.process.diffusion import (
    VARIANCES,
    p_mean_variance,
    q_mean_variance,
    q_posterior,
    q_sample,
)
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.schedules import Schedule
from jax_ddpm.process.shapes import expand, mean_over_pixels
from jax_ddpm.process.types import (
    DenoiseFn,
    Gaussian,
    Images,
    Losses,
    NoiseFn,
    Prediction,
    Timesteps,
)

ReverseFn = Callable[[Images, Timesteps], tuple[Prediction, Gaussian]]

# The approximate cdf of x is sigmoid(TWICE_SLOPE (x + CUBIC x^3)).
TWICE_SLOPE, CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715
SATURATED = 20.0  # beyond it the approximate cdf is 0 or 1 to within 1e-261


class Bound(NamedTuple):
    """The bound on -log2 p(x_0) of each image, in bits per pixel and channel, and two errors by t.

    `terms[t]` is the `vb_term` of t; `x_0_mse` and `eps_mse` are the mean squared errors of the
    prediction at the same x_t.
    """

    prior: Float[Array, " b"]
    terms: Float[Array, "T b"]
    x_0_mse: Float[Array, "T b"]
    eps_mse: Float[Array, "T b"]

    @property
    def total(self) -> Float[Array, " b"]:
        """The bound itself: the sum of the prior and all terms."""
        return self.prior + self.terms.sum(axis=0)


def variational_bound(
    schedule: Schedule,
    reverse_fn: ReverseFn,
    x_0: Images,
    noise_fn: NoiseFn,
    *,
    log_floor: float = 1e-12,
) -> Bound:
    """Every term of the bound, at one x_t per image and t, in one scan (Ho et al. 2020, Eq. 5).

    x_0 in [-1, 1] consists of 8-bit pixels; `reverse_fn(x_t, t)` comes from `make_reverse_fn`;
    `noise_fn(t)` is the noise [b, h, w, c] of timestep t. The convention at t = 0 follows from
    `schedule` (clipped_log_variance) and `log_floor`.
    """

    def at(carry: None, t: Int[Array, ""]) -> tuple[None, tuple[Array, ...]]:
        ts, noise = jnp.full(len(x_0), t), noise_fn(t)
        x_t = q_sample(schedule, x_0, ts, noise)
        prediction, model = reverse_fn(x_t, ts)
        return carry, (
            vb_term(schedule, x_0, x_t, ts, model, log_floor=log_floor),
            mean_over_pixels((prediction.x_0 - x_0) ** 2),
            mean_over_pixels((prediction.eps - noise) ** 2),
        )

    _, by_t = jax.lax.scan(at, None, jnp.arange(schedule.num_timesteps))
    return Bound(prior_term(schedule, x_0), *by_t)


def make_reverse_fn(schedule: Schedule, denoise_fn: DenoiseFn, variance: str) -> ReverseFn:
    """A function (x_t, t) -> (prediction, p(x_{t-1} | x_t)) from a denoiser; see `p_mean_variance`.

    For fewer timesteps, take the schedule of `respace_betas` and the denoiser of
    `respace_denoiser`.
    """
    variance = check_choice("variance", variance, VARIANCES)

    def reverse_fn(x_t: Images, t: Timesteps) -> tuple[Prediction, Gaussian]:
        prediction = denoise_fn(x_t, level_at(schedule, t))
        return prediction, p_mean_variance(schedule, prediction, x_t, t, variance)

    return reverse_fn


def make_noise_fn(
    keys: Key[Array, " b"], image_shape: tuple[int, ...], dtype: Any = jnp.float32
) -> NoiseFn:
    """A function t -> standard normal noise, each image from its own key."""

    def noise_fn(t: Int[Array, ""] | int) -> Images:
        return jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, t), image_shape, dtype)
        )(keys)

    return noise_fn


def normal_kl(p: Gaussian, q: Gaussian) -> Float[Array, "..."]:
    """KL(p | q) of each pixel in nats (Ho et al. 2020, Eq. 5); only log variances are used."""
    squared = (p.mean - q.mean) ** 2 * jnp.exp(-q.log_variance)
    ratio = p.log_variance - q.log_variance
    return 0.5 * (jnp.expm1(ratio) - ratio + squared)


def approx_normal_cdf(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The standard normal's cumulative distribution through tanh, to within 2e-4."""
    x = jnp.clip(x, -SATURATED, SATURATED)  # far out the gradient would be 0 times infinity
    return jax.nn.sigmoid(TWICE_SLOPE * (x + CUBIC * x**3))  # (1 + tanh(y)) / 2 is sigmoid(2 y)


def discretized_gaussian_log_likelihood(
    x: Images, mean: Images, log_scale: Float[Array, "*any"], *, floor: float = 1e-12
) -> Images:
    """Log-probability in nats that a Gaussian falls into the 8-bit bin of each pixel of `x`.

    x in [-1, 1]; the outermost bins reach to infinity (Ho et al. 2020, Eq. 13). Probabilities below
    `floor` count as `floor`: 1e-12 (Ho et al., OpenAI) or 1e-15 (lucidrains).

    The cdf is `approx_normal_cdf`, a sigmoid. Its difference over a bin is computed as a product,
    sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), whose factors keep their
    digits where the difference of two numbers near 1 has none left.
    """
    scale = jnp.exp(-log_scale)
    upper, lower = (
        jnp.clip(scale * (x - mean + side), -SATURATED, SATURATED) for side in (1 / 255, -1 / 255)
    )
    width = jnp.minimum(scale * (2 / 255), 2 * SATURATED)
    gap = TWICE_SLOPE * width * (1 + CUBIC * (upper**2 + upper * lower + lower**2))  # b - a
    log_below = jax.nn.log_sigmoid(TWICE_SLOPE * (upper + CUBIC * upper**3))
    log_above = jax.nn.log_sigmoid(-TWICE_SLOPE * (lower + CUBIC * lower**3))
    inside = jnp.where(x > 0.999, log_above, log_below + log_above + jnp.log(-jnp.expm1(-gap)))
    return jnp.maximum(jnp.where(x < -0.999, log_below, inside), math.log(floor))


def vb_term(
    schedule: Schedule,
    x_0: Images,
    x_t: Images,
    t: Timesteps,
    model: Gaussian,
    *,
    log_floor: float = 1e-12,
) -> Losses:
    """One term of the bound, in bits per pixel and channel (Ho et al. 2020, Eq. 5).

    `model` is p(x_{t-1} | x_t), see `p_mean_variance`. The term is KL(q(x_{t-1} | x_t, x_0) | p),
    and -log p(x_0 | x_1) at t = 0, where p has the clipped variance of `schedule`.
    """
    decoded, posterior = expand(t, x_t) == 0, q_posterior(schedule, x_0, x_t, t)
    # At t = 0 the divergence is not used, but with a tiny variance it would poison the gradient.
    later = model._replace(
        log_variance=jnp.where(decoded, posterior.log_variance, model.log_variance)
    )
    kl = normal_kl(posterior, later)
    log_scale = model.log_variance / 2
    nll = -discretized_gaussian_log_likelihood(x_0, model.mean, log_scale, floor=log_floor)
    return mean_bits(jnp.where(decoded, nll, kl))


def prior_term(schedule: Schedule, x_0: Images) -> Losses:
    """KL(q(x_T | x_0) | N(0, 1)) in bits per pixel and channel: what x_T still reveals of x_0."""
    last = jnp.full(len(x_0), schedule.num_timesteps - 1)
    zero = jnp.zeros((), x_0.dtype)
    return mean_bits(
        normal_kl(q_mean_variance(schedule, x_0, last), Gaussian(zero, zero + 1, zero))
    )


def mean_bits(nats: Images) -> Losses:
    """Nats per pixel and channel as bits, averaged over each image."""
    return mean_over_pixels(nats) / math.log(2)
