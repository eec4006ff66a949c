"""The algebra of the forward process and its reversal: q_sample, q_posterior, p_mean_variance.

Pure functions of arrays: no randomness, no network. Images are [b, h, w, c]; timesteps and the
fields of a `Level` are scalars or [b].
"""

from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_ddpm.errors import UserError, check_choice
from jax_ddpm.process.checks import check_images, check_timesteps
from jax_ddpm.process.levels import Level, level_at
from jax_ddpm.process.schedules import Schedule
from jax_ddpm.process.shapes import expand
from jax_ddpm.process.types import Gaussian, Images, Prediction, Timesteps

FIXED = ("fixed_small", "fixed_large")


LEARNED = ("learned_range", "learned")


VARIANCES = FIXED + LEARNED


def add_noise(level: Level, x_0: Images, noise: Images) -> Images:
    """x_t = signal x_0 + sigma noise (Ho et al. 2020, Eq. 4).

    Raises UserError for integer images, and for images with the channels in front.
    """
    check_images("x_0", x_0)
    return expand(level.signal, x_0) * x_0 + expand(level.sigma, x_0) * noise


def q_sample(schedule: Schedule, x_0: Images, t: Timesteps, noise: Images) -> Images:
    """Draw x_t from q(x_t | x_0) with the given noise, t in 0..T-1 (Ho et al. 2020, Eq. 4).

    x_0 [b, h, w, c] in [-1, 1], t a scalar or [b], noise standard normal and shaped like x_0.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> x_0, t = jax.numpy.zeros((2, 8, 8, 1)), jax.numpy.array([10, 500])
        >>> noise = jax.random.normal(jax.random.key(0), x_0.shape)
        >>> jd.q_sample(jd.named_schedule("linear", 1000), x_0, t, noise).shape
        (2, 8, 8, 1)
    """
    return add_noise(level_at(schedule, t), x_0, noise)


def q_step(schedule: Schedule, x_prev: Images, t: Timesteps, noise: Images) -> Images:
    """Draw x_t from q(x_t | x_{t-1}) with the given noise, t in 0..T-1 (Ho et al. 2020, Eq. 2)."""
    check_timesteps(t, schedule.num_timesteps)
    beta = expand(schedule.betas[t], x_prev)
    return jnp.sqrt(1 - beta) * x_prev + jnp.sqrt(beta) * noise


def q_posterior(schedule: Schedule, x_0: Images, x_t: Images, t: Timesteps) -> Gaussian:
    """q(x_{t-1} | x_t, x_0), t in 0..T-1 (Ho et al. 2020, Eqs. 6 and 7).

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> x_0, x_t = jax.numpy.zeros((2, 8, 8, 1)), jax.numpy.ones((2, 8, 8, 1))
        >>> posterior = jd.q_posterior(
        ...     jd.named_schedule("linear", 1000), x_0, x_t, jax.numpy.array([0, 9])
        ... )
        >>> posterior.mean.shape, float(posterior.mean[0].max())  # at t = 0 it is x_0
        ((2, 8, 8, 1), 0.0)
    """
    check_timesteps(t, schedule.num_timesteps)
    coef1 = expand(schedule.posterior_mean_coef1[t], x_t)
    coef2 = expand(schedule.posterior_mean_coef2[t], x_t)
    return Gaussian(
        mean=coef1 * x_0 + coef2 * x_t,
        variance=expand(schedule.posterior_variance[t], x_t),
        log_variance=expand(schedule.posterior_log_variance_clipped[t], x_t),
    )


def q_mean_variance(schedule: Schedule, x_0: Images, t: Timesteps) -> Gaussian:
    """q(x_t | x_0), t in 0..T-1 (Ho et al. 2020, Eq. 4)."""
    check_timesteps(t, schedule.num_timesteps)
    return Gaussian(
        mean=expand(schedule.sqrt_alphas_cumprod[t], x_0) * x_0,
        variance=expand(schedule.sqrt_one_minus_alphas_cumprod[t] ** 2, x_0),
        log_variance=expand(schedule.log_one_minus_alphas_cumprod[t], x_0),
    )


def p_mean_variance(
    schedule: Schedule, prediction: Prediction, x_t: Images, t: Timesteps, variance: str
) -> Gaussian:
    """p(x_{t-1} | x_t) at a predicted x_0, t in 0..T-1 (Ho et al. 2020, section 3.2).

    The variance is beta-tilde ("fixed_small"), beta ("fixed_large"), between the two
    ("learned_range"), or the exponential of the network's own output ("learned"). At t = 0
    "fixed_large" has the clipped beta-tilde too, for a better likelihood (code of Ho et al.).
    Raises UserError for a learned variance that was not predicted.
    """
    variance = check_choice("variance", variance, VARIANCES)
    posterior = q_posterior(schedule, prediction.x_0, x_t, t)
    if variance == "fixed_small":
        return posterior
    log_large = expand(jnp.log(schedule.betas[t]), x_t)
    if variance == "fixed_large":
        log_variance = jnp.where(expand(t, x_t) == 0, posterior.log_variance, log_large)
    else:
        log_variance = learned_log_variance(prediction, variance, posterior.log_variance, log_large)
    return Gaussian(posterior.mean, jnp.exp(log_variance), log_variance)


def learned_log_variance(
    prediction: Prediction,
    variance: str,
    log_small: Float[Array, "..."],
    log_large: Float[Array, "..."],
) -> Images:
    """The predicted log variance: the output itself ("learned"), or between the two bounds.

    "learned_range": -1 is the small variance, 1 the large one (Nichol & Dhariwal 2021, Eq. 15).
    Raises UserError if the prediction has no variance.
    """
    raw = prediction.raw_variance
    if raw is None:
        raise UserError(
            f"variance {variance!r} needs a network that predicts it: learned_variance=True"
        )
    if variance == "learned":
        return raw
    fraction = (raw + 1) / 2
    return fraction * log_large + (1 - fraction) * log_small


def x_0_from_x_prev(schedule: Schedule, x_t: Images, t: Timesteps, x_prev: Images) -> Images:
    """The x_0 at which the mean of q(x_{t-1} | x_t, x_0) is `x_prev` (Ho et al. 2020, Eq. 7).

    For networks that predict this mean. Their target is `q_posterior(...).mean`.
    """
    check_timesteps(t, schedule.num_timesteps)
    coef1 = expand(schedule.posterior_mean_coef1[t], x_t)
    coef2 = expand(schedule.posterior_mean_coef2[t], x_t)
    return x_prev / coef1 - coef2 / coef1 * x_t


if TYPE_CHECKING:
    Variance = str
else:
    Variance = Literal[VARIANCES]
