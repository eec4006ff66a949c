"""Noise levels: of timesteps, of a given sigma / signal, of a float t."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from jax_ddpm.process.schedules import Schedule


class Level(NamedTuple):
    """Noise levels: x_t = signal * x_0 + sigma * noise. t = -1 is the clean image (1, 0).

    Between two timesteps t is a float: networks that embed t take any, a table of times does not.
    """

    t: Num[Array, "*n"]
    signal: Float[Array, "*n"]
    sigma: Float[Array, "*n"]


def level_at(schedule: Schedule, t: Int[Array, "*n"]) -> Level:
    """The noise levels of timesteps `t` (any shape, -1..T-1)."""
    t = jnp.asarray(t)
    clean = t < 0
    signal = jnp.where(clean, 1, schedule.sqrt_alphas_cumprod[t])
    sigma = jnp.where(clean, 0, schedule.sqrt_one_minus_alphas_cumprod[t])
    return Level(t, signal, sigma)


def level_list(
    schedule: Schedule, t: Float[np.ndarray, " S"], sigmas: Float[np.ndarray, " S"]
) -> Level:
    """Levels told as (t, sigma / signal), as other packages tabulate them, and the clean image."""
    return with_clean_image(np.asarray(t), np.asarray(sigmas), schedule.betas.dtype)


def with_clean_image(t: Any, sigmas: Any, dtype: Any) -> Level:
    signal = 1 / np.sqrt(1 + sigmas**2)
    fields = np.append(t, -1.0), np.append(signal, 1.0), np.append(signal * sigmas, 0.0)
    return Level(*(jnp.asarray(field, dtype) for field in fields))


def log_sigma_table(schedule: Schedule) -> Float[np.ndarray, " T"]:
    """log(sigma / signal) of every timestep, ascending; infinite where no signal is left."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(schedule.sqrt_recipm1_alphas_cumprod, np.float64))


def level_of_sigma(schedule: Schedule) -> Callable[[Float[Array, "*n"]], Level]:
    """The level of a given sigma / signal > 0.

    Its t lies on the line through log(sigma / signal) over the timesteps, and is cut off at 0 and
    T - 1 (K. Crowson's k-diffusion).
    """
    table = log_sigma_table(schedule)

    def level(sigma: Float[Array, "*n"]) -> Level:
        log_sigmas = jnp.asarray(table, sigma.dtype)
        t = jnp.interp(jnp.log(sigma), log_sigmas, jnp.arange(len(table), dtype=sigma.dtype))
        signal = 1 / jnp.sqrt(1 + sigma**2)
        return Level(t, signal, signal * sigma)

    return level


def level_of_t(schedule: Schedule) -> Callable[[Num[Array, "*n"]], Level]:
    """The level of a timestep: that of the tables of a whole one, between them of a float.

    Between two timesteps log(sigma / signal) is linear, so that `level_of_sigma` gives t back.
    """
    table = log_sigma_table(schedule)

    def level(t: Num[Array, "*n"]) -> Level:
        if jnp.issubdtype(t.dtype, jnp.integer):
            return level_at(schedule, t)
        log_sigma = jnp.interp(
            t, jnp.arange(len(table), dtype=t.dtype), jnp.asarray(table, t.dtype)
        )
        sigma = jnp.exp(log_sigma)
        signal = 1 / jnp.sqrt(1 + sigma**2)
        return Level(t, signal, signal * sigma)

    return level
