"""Noise schedules and their tables: computed in NumPy float64, returned as PyTorch tensors."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def linear_betas(
    num_timesteps: int, start: float = 1e-4, end: float = 0.02, rescale: bool = False
) -> np.ndarray:
    """Linear betas [T] (Ho et al. 2020, section 4); `rescale` multiplies both ends by 1000 / T."""
    factor = 1000.0 / num_timesteps if rescale else 1.0
    return np.linspace(factor * start, factor * end, num_timesteps)


def quadratic_betas(num_timesteps: int, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """Betas [T] with evenly spaced square roots."""
    return np.linspace(start**0.5, end**0.5, num_timesteps) ** 2


def sigmoid_betas(num_timesteps: int, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """Betas [T] that follow a sigmoid over [-6, 6], scaled to (start, end)."""
    return _sigmoid(np.linspace(-6.0, 6.0, num_timesteps)) * (end - start) + start


def cosine_betas(
    num_timesteps: int, s: float = 0.008, clip: tuple[float, float] = (0.0, 0.999)
) -> np.ndarray:
    """Betas [T] of the cosine schedule (Nichol & Dhariwal 2021, Eq. 17), clipped to `clip`."""
    u = np.linspace(0.0, 1.0, num_timesteps + 1)
    return _betas_of_cumprod(np.cos((u + s) / (1.0 + s) * np.pi / 2.0) ** 2, clip)


def sigmoid_cumprod_betas(
    num_timesteps: int,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
    clip: tuple[float, float] = (0.0, 0.999),
) -> np.ndarray:
    """Betas [T] for an alphas_cumprod that is a falling sigmoid (Jabri et al. 2022), clipped."""
    curve = _sigmoid(np.linspace(start, end, num_timesteps + 1) / tau)
    return _betas_of_cumprod(curve[-1] - curve, clip)


def warmup_betas(
    num_timesteps: int, share: float, start: float = 1e-4, end: float = 0.02
) -> np.ndarray:
    """Betas [T] that rise linearly to `end` over a `share` of the chain (Ho et al.'s code)."""
    rising = np.linspace(start, end, int(share * num_timesteps))
    return np.append(rising, np.repeat(end, num_timesteps - len(rising)))


def jsd_betas(num_timesteps: int) -> np.ndarray:
    """Betas [T] 1/T, 1/(T - 1), ..., 1: the last timestep is pure noise (Ho et al.'s code)."""
    return 1.0 / np.arange(num_timesteps, 0, -1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _betas_of_cumprod(cumprod: np.ndarray, clip: tuple[float, float]) -> np.ndarray:
    """Betas [T] of alphas_cumprod [T+1], which may have any scale: only ratios matter."""
    return np.clip(1.0 - cumprod[1:] / cumprod[:-1], *clip)


@dataclass(frozen=True)
class Schedule:
    """Tables [T] of Ho et al. 2020, Eqs. 2 to 7; entry t is for the image noised t + 1 times."""

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor


@np.errstate(divide="ignore")  # a beta of exactly 1 leaves no signal: its reciprocal is infinite
def make_schedule(
    betas: np.ndarray,
    dtype: torch.dtype = torch.float32,
    clipped_log_variance: str = "second_entry",
) -> Schedule:
    """The tables of betas [T]: computed in float64, cast once.

    At t = 0 the posterior variance is 0; its logarithm is replaced by that of t = 1
    ("second_entry") or by log(1e-20) ("floor").
    """
    betas = np.asarray(betas, dtype=np.float64)
    if not np.all((betas >= 0.0) & (betas <= 1.0)):
        raise ValueError("betas must lie in [0, 1]")
    cumprod = np.cumprod(1.0 - betas)
    prev = np.append(1.0, cumprod[:-1])
    variance = betas * (1.0 - prev) / (1.0 - cumprod)
    clipped = {
        "second_entry": np.append(variance[1:2], variance[1:]),
        "floor": np.maximum(variance, 1e-20),
    }[clipped_log_variance]
    tables = {
        "betas": betas,
        "alphas_cumprod": cumprod,
        "alphas_cumprod_prev": prev,
        "sqrt_alphas_cumprod": np.sqrt(cumprod),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - cumprod),
        "log_one_minus_alphas_cumprod": np.log(1.0 - cumprod),
        "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / cumprod),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / cumprod - 1.0),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(clipped),
        "posterior_mean_coef1": betas * np.sqrt(prev) / (1.0 - cumprod),
        "posterior_mean_coef2": (1.0 - prev) * np.sqrt(1.0 - betas) / (1.0 - cumprod),
    }
    return Schedule(**{name: torch.tensor(table, dtype=dtype) for name, table in tables.items()})
