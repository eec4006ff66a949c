"""Noise levels: of timesteps, of a given sigma / signal, of a float t."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from jax_ddpm.process.checks import check_timesteps
from jax_ddpm.process.schedules import Schedule


class Level(NamedTuple):
    """Noise levels: x_t = signal * x_0 + sigma * noise. t = -1 is the clean image (1, 0).

    A level is one for all images (shape []) or one per image ([b]; inside a sampler's step signal
    and sigma are then [b, 1, 1, 1], which broadcasts over pixels). A grid of levels has the steps
    in front ([S + 1] or [S + 1, b]). Between two timesteps t is a float: networks that embed t take
    any, a table of times does not.
    """

    t: Num[Array, "*n"]
    signal: Float[Array, "*n"]
    sigma: Float[Array, "*n"]


def level_at(schedule: Schedule, t: Int[Array | np.ndarray, "*n"] | int) -> Level:
    """The noise levels of timesteps `t` (any shape, -1..T-1).

    Raises UserError for a timestep outside. Under `jax.jit` values are not known and therefore not
    checked: a timestep beyond T - 1 then has the level of T - 1.

    Examples:
        >>> import jax_ddpm as jd, numpy as np
        >>> level = jd.level_at(jd.named_schedule("cosine", 1000), np.array([999, 500, -1]))
        >>> level.t.tolist(), float(level.signal[-1]), float(level.sigma[-1])
        ([999, 500, -1], 1.0, 0.0)
    """
    t = jnp.asarray(t)
    check_timesteps(t, schedule.num_timesteps, lowest=-1)
    clean = t < 0
    signal = jnp.where(clean, 1, schedule.sqrt_alphas_cumprod[t])
    sigma = jnp.where(clean, 0, schedule.sqrt_one_minus_alphas_cumprod[t])
    return Level(t, signal, sigma)


def level_list(
    schedule: Schedule, t: Num[np.ndarray, " S"], sigmas: Float[np.ndarray, " S"]
) -> Level:
    """Levels given as (t, sigma / signal), as other packages tabulate them, and the clean image."""
    return append_clean_image(t, sigmas, schedule.betas.dtype)


def append_clean_image(
    t: Num[np.ndarray, " S"], sigmas: Float[np.ndarray, " S"], dtype: Any
) -> Level:
    """The levels of (t, sigma / signal), followed by t = -1. An infinite one is pure noise."""
    signal = 1 / np.sqrt(1 + sigmas**2)
    sigma = np.where(np.isinf(sigmas), 1, signal * np.where(np.isinf(sigmas), 0, sigmas))
    fields = np.append(t, -1.0), np.append(signal, 1.0), np.append(sigma, 0.0)
    return Level(*(jnp.asarray(field, dtype) for field in fields))


def log_sigma_table(schedule: Schedule) -> Float[np.ndarray, " T"]:
    """log(sigma / signal) of every timestep, ascending; infinite where no signal is left."""
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(schedule.sqrt_recipm1_alphas_cumprod, np.float64))


def level_of_sigma(schedule: Schedule) -> Callable[[Float[Array, "*n"]], Level]:
    """A function from sigma / signal > 0 to the level.

    t is interpolated linearly in log(sigma / signal) and clipped to 0..T-1 (K. Crowson's
    k-diffusion).
    """
    table = log_sigma_table(schedule)

    def level(sigma: Float[Array, "*n"]) -> Level:
        log_sigmas = jnp.asarray(table, sigma.dtype)
        t = jnp.interp(jnp.log(sigma), log_sigmas, jnp.arange(len(table), dtype=sigma.dtype))
        signal = 1 / jnp.sqrt(1 + sigma**2)
        return Level(t, signal, signal * sigma)

    return level


def level_of_t(schedule: Schedule) -> Callable[[Num[Array, "*n"]], Level]:
    """A function from timesteps to levels: integers are looked up, floats lie in between.

    Between two timesteps log(sigma / signal) is linear, so that `level_of_sigma` gives t back.
    """
    table = log_sigma_table(schedule)

    def level(t: Num[Array, "*n"]) -> Level:
        if jnp.issubdtype(t.dtype, jnp.integer):
            return level_at(schedule, t)
        log_sigmas = jnp.asarray(table, t.dtype)
        sigma = jnp.exp(jnp.interp(t, jnp.arange(len(table), dtype=t.dtype), log_sigmas))
        signal = 1 / jnp.sqrt(1 + sigma**2)
        return Level(t, signal, signal * sigma)

    return level
