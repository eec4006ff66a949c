"""The algebra of the forward process: q_sample, q_posterior, and eps <-> x_0 <-> v.

Pure functions of arrays: no randomness, no network. Images are [b, h, w, c]; timesteps and the
fields of a `Level` are scalars or [b].
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_ddpm.process.levels import Level, level_at
from jax_ddpm.process.schedules import Schedule
from jax_ddpm.process.types import Gaussian, Images, Prediction, Timesteps

PredictionType = Literal["eps", "x_0", "v"]
Variance = Literal["fixed_small", "fixed_large", "learned_range", "learned"]
LEARNED: tuple[Variance, ...] = ("learned_range", "learned")


def expand(a: Float[Array, "*b"], images: Images) -> Float[Array, "*b 1 1 1"]:
    """Append axes of length 1 to a per-example value, so that it broadcasts over pixels."""
    return a.reshape(a.shape + (1,) * (images.ndim - a.ndim)) if a.ndim else a


def add_noise(level: Level, x_0: Images, noise: Images) -> Images:
    """x_t = signal x_0 + sigma noise (Ho et al. 2020, Eq. 4)."""
    return expand(level.signal, x_0) * x_0 + expand(level.sigma, x_0) * noise


def q_sample(schedule: Schedule, x_0: Images, t: Timesteps, noise: Images) -> Images:
    """Draw x_t from q(x_t | x_0) with the given noise, t in 0..T-1 (Ho et al. 2020, Eq. 4)."""
    return add_noise(level_at(schedule, t), x_0, noise)


def q_step(schedule: Schedule, x_prev: Images, t: Timesteps, noise: Images) -> Images:
    """Draw x_t from q(x_t | x_{t-1}) with the given noise (Ho et al. 2020, Eq. 2)."""
    beta = expand(schedule.betas[t], x_prev)
    return jnp.sqrt(1 - beta) * x_prev + jnp.sqrt(beta) * noise


def q_posterior(schedule: Schedule, x_0: Images, x_t: Images, t: Timesteps) -> Gaussian:
    """q(x_{t-1} | x_t, x_0), t in 0..T-1 (Ho et al. 2020, Eqs. 6 and 7)."""
    coef1 = expand(schedule.posterior_mean_coef1[t], x_t)
    coef2 = expand(schedule.posterior_mean_coef2[t], x_t)
    return Gaussian(
        mean=coef1 * x_0 + coef2 * x_t,
        variance=expand(schedule.posterior_variance[t], x_t),
        log_variance=expand(schedule.posterior_log_variance_clipped[t], x_t),
    )


def q_mean_variance(schedule: Schedule, x_0: Images, t: Timesteps) -> Gaussian:
    """q(x_t | x_0), t in 0..T-1 (Ho et al. 2020, Eq. 4)."""
    return Gaussian(
        mean=expand(schedule.sqrt_alphas_cumprod[t], x_0) * x_0,
        variance=expand(schedule.sqrt_one_minus_alphas_cumprod[t] ** 2, x_0),
        log_variance=expand(schedule.log_one_minus_alphas_cumprod[t], x_0),
    )


def p_mean_variance(
    schedule: Schedule, prediction: Prediction, x_t: Images, t: Timesteps, variance: Variance
) -> Gaussian:
    """p(x_{t-1} | x_t) of a predicted x_0, t in 0..T-1 (Ho et al. 2020, section 3.2).

    The variance is beta-tilde ("fixed_small"), beta ("fixed_large"), between the two
    ("learned_range"), or the exponential of the network's own output ("learned"). At t = 0
    "fixed_large" has the clipped beta-tilde too, for a better likelihood (code of Ho et al.).
    Raises ValueError for a learned variance that was not predicted.
    """
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
    variance: Variance,
    log_small: Float[Array, "*b 1 1 1"],
    log_large: Float[Array, "*b 1 1 1"],
) -> Images:
    """What the network says of log variance: itself ("learned"), or a place between the bounds.

    "learned_range": -1 is the small variance, 1 the large one (Nichol & Dhariwal 2021, Eq. 15).
    Raises ValueError if the prediction has no variance.
    """
    raw = prediction.raw_variance
    if raw is None:
        raise ValueError(
            f"variance {variance!r} needs a network that predicts it: learned_variance=True"
        )
    if variance == "learned":
        return raw
    fraction = (raw + 1) / 2
    return fraction * log_large + (1 - fraction) * log_small


def x_0_from_x_prev(schedule: Schedule, x_t: Images, t: Timesteps, x_prev: Images) -> Images:
    """The x_0 at which the mean of q(x_{t-1} | x_t, x_0) is `x_prev` (Ho et al. 2020, Eq. 7).

    For networks that predict that mean. Their target is `q_posterior(...).mean`.
    """
    coef1 = expand(schedule.posterior_mean_coef1[t], x_t)
    coef2 = expand(schedule.posterior_mean_coef2[t], x_t)
    return x_prev / coef1 - coef2 / coef1 * x_t


def x_0_from_eps(level: Level, x_t: Images, eps: Images) -> Images:
    """x_0 = (x_t - sigma eps) / signal (Ho et al. 2020, Eq. 15)."""
    return (x_t - expand(level.sigma, x_t) * eps) / expand(level.signal, x_t)


def eps_from_x_0(level: Level, x_t: Images, x_0: Images) -> Images:
    """eps = (x_t - signal x_0) / sigma; not defined for the clean image, sigma = 0."""
    return (x_t - expand(level.signal, x_t) * x_0) / expand(level.sigma, x_t)


def v_from(level: Level, x_0: Images, eps: Images) -> Images:
    """v = signal eps - sigma x_0 (Salimans & Ho 2022, section 4)."""
    return expand(level.signal, x_0) * eps - expand(level.sigma, x_0) * x_0


def x_0_from_v(level: Level, x_t: Images, v: Images) -> Images:
    """x_0 = signal x_t - sigma v (Salimans & Ho 2022, appendix D)."""
    return expand(level.signal, x_t) * x_t - expand(level.sigma, x_t) * v


def eps_from_v(level: Level, x_t: Images, v: Images) -> Images:
    """eps = sigma x_t + signal v (Salimans & Ho 2022, appendix D)."""
    return expand(level.sigma, x_t) * x_t + expand(level.signal, x_t) * v


def split_output(
    output: Float[Array, "b h w o"], learned_variance: bool
) -> tuple[Images, Images | None]:
    """The network's prediction and, if it learns the variance, the second half of its channels."""
    if not learned_variance:
        return output, None
    prediction, raw_variance = jnp.split(output, 2, axis=-1)
    return prediction, raw_variance


def to_prediction(
    output: Images, x_t: Images, level: Level, prediction_type: PredictionType
) -> Prediction:
    """Read the network's output as a prediction of eps, x_0 or v, and give x_0 and eps."""
    match prediction_type:
        case "eps":
            return Prediction(x_0_from_eps(level, x_t, output), output)
        case "x_0":
            return Prediction(output, eps_from_x_0(level, x_t, output))
        case "v":
            return Prediction(x_0_from_v(level, x_t, output), eps_from_v(level, x_t, output))


def prediction_target(
    level: Level, x_0: Images, noise: Images, prediction_type: PredictionType
) -> Images:
    """What the network's output is compared with: the drawn noise, the clean image, or v."""
    match prediction_type:
        case "eps":
            return noise
        case "x_0":
            return x_0
        case "v":
            return v_from(level, x_0, noise)
