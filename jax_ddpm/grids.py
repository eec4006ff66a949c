"""Grids between the timesteps: levels by their log-SNR, levels of a given sigma or float t."""

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from jax_ddpm.schedules import Level, Schedule, Spacing, level_at

ContinuousSpacing = Literal["log_snr", "karras"]
GridName = Literal[Spacing, ContinuousSpacing]
CONTINUOUS: tuple[ContinuousSpacing, ...] = ("log_snr", "karras")
RHO = 7  # Karras et al. 2022, Eq. 5


def continuous_levels(schedule: Schedule, num_steps: int, spacing: ContinuousSpacing) -> Level:
    """S levels from that of T - 1 to that of t = 0, descending, and the clean image, t = -1.

    log_snr: equal steps of log(signal / sigma) (Lu et al. 2022). karras: equal steps of
    (sigma / signal)^(1/7) (Karras et al. 2022, Eq. 5). t is the float that `level_of_sigma` gives.

    Raises ValueError for no step, and where the schedule ends in pure noise.
    """
    if num_steps < 1:
        raise ValueError(f"the number of sampling steps must be at least 1, got {num_steps}")
    log_sigmas = log_sigma_table(schedule)
    if not np.isfinite(log_sigmas[-1]):
        raise ValueError(
            f"{spacing!r} spacing needs a schedule that keeps some signal: zero terminal SNR goes "
            "with spacings in t, such as trailing"
        )
    part = np.linspace(0.0, 1.0, num_steps) if num_steps > 1 else np.zeros(1)
    end, start = log_sigmas[0], log_sigmas[-1]
    if spacing == "log_snr":
        chosen = start + part * (end - start)
    else:
        low, high = np.exp(end / RHO), np.exp(start / RHO)
        chosen = RHO * np.log(high + part * (low - high))
        chosen = np.clip(chosen, end, start)  # beyond which rounding may lie
    t = np.interp(chosen, log_sigmas, np.arange(len(log_sigmas)))
    return _with_clean_image(t, np.exp(chosen), schedule.betas.dtype)


def level_list(
    schedule: Schedule, t: Float[np.ndarray, " S"], sigmas: Float[np.ndarray, " S"]
) -> Level:
    """Levels told as (t, sigma / signal), as other packages tabulate them, and the clean image."""
    return _with_clean_image(np.asarray(t), np.asarray(sigmas), schedule.betas.dtype)


def _with_clean_image(t: Any, sigmas: Any, dtype: Any) -> Level:
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


def listed_timesteps(num_timesteps: int, listed: str) -> Int[np.ndarray, " S+1"]:
    """The timesteps of a list like "999,850,736", descending, followed by -1.

    So published lists can be given (Align Your Steps, Sabour et al. 2024). Raises ValueError unless
    the list is of whole numbers that descend between T - 1 and 0.
    """
    parts = [part.strip() for part in listed.split(",")]
    if not all(part.isdigit() for part in parts):
        raise ValueError(f'the timesteps are {listed!r}, but they must be like "999,850,736"')
    timesteps = np.array([*map(int, parts), -1])
    if timesteps[0] >= num_timesteps or np.any(np.diff(timesteps) >= 0):
        raise ValueError(
            f"the timesteps {listed} must descend between T - 1 = {num_timesteps - 1} and 0"
        )
    return timesteps.astype(np.int32)
