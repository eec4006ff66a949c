"""The betas of diffusers' schedulers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_ddpm.errors import UserError, join_or
from jax_ddpm.process.schedules import (
    Betas,
    betas_from_alphas_cumprod,
    linear_betas,
    named_betas,
    quadratic_betas,
    rescale_zero_terminal_snr,
    sigmoid_betas,
)

Settings = Mapping[str, Any]

NAMED_SCHEDULES = {  # those with the default ends
    "linear": "linear",
    "scaled_linear": "quadratic",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}


def make_betas(settings: Settings) -> Betas:
    """The betas of a scheduler, in float64, with zero terminal SNR where it is asked for.

    Raises UserError for betas that cannot be.
    """
    timesteps = settings["num_train_timesteps"]
    if not 1 <= timesteps <= 1_000_000:
        raise UserError(f"num_train_timesteps is {timesteps}, but it must be 1 to 1,000,000")
    if settings["trained_betas"] is not None:
        betas = _read_trained(settings["trained_betas"], timesteps)
    else:
        betas = _make_named(settings["beta_schedule"], timesteps, settings)
    return rescale_zero_terminal_snr(betas) if settings["rescale_betas_zero_snr"] else betas


def _read_trained(values: Any, timesteps: int) -> Betas:
    try:
        betas = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError("trained_betas are not numbers") from error
    if betas.shape != (timesteps,):
        raise UserError(
            f"trained_betas have shape {betas.shape}, but num_train_timesteps is {timesteps}"
        )
    return betas


def _make_named(name: object, timesteps: int, settings: Settings) -> Betas:
    start, end = float(settings["beta_start"]), float(settings["beta_end"])
    match name:
        case "linear":
            return linear_betas(timesteps, start=start, end=end)
        case "scaled_linear":
            return quadratic_betas(timesteps, start=start, end=end)
        case "sigmoid":
            return sigmoid_betas(timesteps, start=start, end=end)
        case "squaredcos_cap_v2":
            return named_betas("cosine", timesteps)
        case "laplace":
            return laplace_betas(timesteps)
    known = [*NAMED_SCHEDULES, "laplace"]
    raise UserError(f"beta_schedule is {name!r}, but it must be {join_or(known)}")


def laplace_betas(timesteps: int) -> Betas:
    """Betas whose log-SNR has a Laplace distribution, as diffusers writes it.

    It takes the square root of sigmoid(log-SNR) for alphas_cumprod.
    """
    u = np.linspace(0, 1, timesteps + 1)
    log_snr = -0.5 * np.copysign(1, 0.5 - u) * np.log(1 - 2 * np.abs(0.5 - u) + 1e-6)
    return betas_from_alphas_cumprod(np.sqrt(1 / (1 + np.exp(-log_snr))), clip=(-1.0, 0.999))
