"""Ancestral (DDPM) and DDIM sampling over any of the timesteps; noise is passed in."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from .diffusion import Model, to_x_0_and_eps
from .schedule import Schedule


class Noises(Protocol):
    """A list of noises, a tensor, or an object that draws number i on demand."""

    def __getitem__(self, i: int, /) -> Tensor:
        """Noise number i."""


def _jump(schedule: Schedule, t: int, t_prev: int) -> tuple[float, float, float, float, float]:
    """Float64 scalars of the jump t -> t_prev, which is one step of the shortened chain.

    They are alpha, beta = 1 - alpha, alphas_cumprod at t_prev, and 1 - alphas_cumprod at t and at
    t_prev. Each comes from the table in which nothing cancels, even in float32.
    """
    prev = float(schedule.alphas_cumprod[t_prev]) if t_prev >= 0 else 1.0
    var_prev = float(schedule.sqrt_one_minus_alphas_cumprod[t_prev]) ** 2 if t_prev >= 0 else 0.0
    var = float(schedule.sqrt_one_minus_alphas_cumprod[t]) ** 2
    log_alpha = torch.log1p(-schedule.betas[t_prev + 1 : t + 1].double()).sum()
    return float(schedule.alphas_cumprod[t]) / prev, -math.expm1(log_alpha), prev, var, var_prev


def ddpm_step(
    schedule: Schedule,
    x_t: Tensor,
    t: int,
    t_prev: int,
    x_0: Tensor,
    noise: Tensor,
    variance: str = "fixed_large",
) -> Tensor:
    """Draw x at t_prev < t (-1: clean) from q(x_{t_prev} | x_t, x_0).

    Ho et al. 2020, Eqs. 6 and 7. The variance is the one of Eq. 7 ("fixed_small") or the beta of
    the jump ("fixed_large"), see section 3.2.
    """
    alpha, beta, prev, var, var_prev = _jump(schedule, t, t_prev)
    mean = math.sqrt(prev) * beta / var * x_0 + math.sqrt(alpha) * var_prev / var * x_t
    chosen = {"fixed_small": beta * var_prev / var, "fixed_large": beta}[variance]
    return mean + math.sqrt(chosen) * noise if t_prev >= 0 else mean


def ddim_step(
    schedule: Schedule,
    x_t: Tensor,
    t: int,
    t_prev: int,
    x_0: Tensor,
    eps: Tensor,
    noise: Tensor,
    eta: float = 0.0,
) -> Tensor:
    """x at t_prev < t (-1: clean): Song et al. 2021, Eq. 12 with the sigma of Eq. 16; eta 0..1."""
    alpha, beta, prev, var, var_prev = _jump(schedule, t, t_prev)
    sigma = eta * math.sqrt(beta * var_prev / var)
    # var_prev - sigma**2, written as a sum of positive terms so that nothing cancels
    direction = math.sqrt(var_prev * ((1.0 - eta**2) + eta**2 * alpha * var_prev / var))
    return math.sqrt(prev) * x_0 + direction * eps + sigma * noise


@torch.no_grad()
def sample(
    model: Model,
    schedule: Schedule,
    timesteps: Sequence[int],
    x_T: Tensor,
    noises: Noises,
    sampler: str = "ddpm",
    prediction_type: str = "eps",
    clip_x_0: bool = True,
    variance: str = "fixed_large",
    eta: float = 0.0,
) -> tuple[Tensor, list[Tensor]]:
    """Sample with "ddpm" or "ddim" from x_T[B,C,H,W]; returns x_0 and [x_T, ..., x_0].

    `timesteps` descend and end in -1. Step i goes from timesteps[i] to timesteps[i + 1] with
    noises[i].
    """
    if sampler not in ("ddpm", "ddim") or timesteps[-1] != -1:
        raise ValueError("sampler must be ddpm or ddim and the last timestep -1")
    x, trajectory = x_T, [x_T]
    for i, (t, t_prev) in enumerate(pairwise(timesteps)):
        batch_t = torch.full((len(x),), t, dtype=torch.int64, device=x.device)
        output = model(x, batch_t)
        x_0, eps = to_x_0_and_eps(schedule, output, x, batch_t, prediction_type, clip_x_0)
        if sampler == "ddpm":
            x = ddpm_step(schedule, x, t, t_prev, x_0, noises[i], variance)
        else:
            x = ddim_step(schedule, x, t, t_prev, x_0, eps, noises[i], eta)
        trajectory.append(x)
    return x, trajectory
