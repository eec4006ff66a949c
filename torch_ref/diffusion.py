"""The diffusion of images x[B,C,H,W] at t, int64[B] in 0..T-1; t = 0 means noised once."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .schedule import Schedule

Model = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[..., Tensor]
LOSSES: dict[str, Loss] = {"l1": F.l1_loss, "l2": F.mse_loss, "huber": F.huber_loss}  # delta = 1


def _at(table: Tensor, t: Tensor) -> Tensor:
    return table.to(t.device)[t][:, None, None, None]  # [B,1,1,1]


def _signal_sigma(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of image and noise in x_t; signal**2 + sigma**2 = 1."""
    return _at(schedule.sqrt_alphas_cumprod, t), _at(schedule.sqrt_one_minus_alphas_cumprod, t)


def q_sample(schedule: Schedule, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t = signal * x_0 + sigma * noise (Ho et al. 2020, Eq. 4)."""
    signal, sigma = _signal_sigma(schedule, t)
    return signal * x_0 + sigma * noise


def q_step(schedule: Schedule, x_prev: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """One forward step x_{t-1} -> x_t (Ho et al., Eq. 2); at t = 0, x_prev is the clean image."""
    # This quotient is 1 - beta, but in float32 it stays precise when beta is close to 1.
    alphas = schedule.alphas_cumprod / schedule.alphas_cumprod_prev
    return _at(alphas.sqrt(), t) * x_prev + _at(schedule.betas.sqrt(), t) * noise


def q_posterior(
    schedule: Schedule, x_0: Tensor, x_t: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [B,C,H,W], variance and log-variance [B,1,1,1] of q(x_{t-1} | x_t, x_0).

    Ho et al. 2020, Eqs. 6 and 7.
    """
    coef1, coef2 = _at(schedule.posterior_mean_coef1, t), _at(schedule.posterior_mean_coef2, t)
    variance = _at(schedule.posterior_variance, t)
    return coef1 * x_0 + coef2 * x_t, variance, _at(schedule.posterior_log_variance_clipped, t)


def x_0_from_eps(schedule: Schedule, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_0 = x_t / signal - sigma / signal * eps (Ho et al., Eq. 4 solved)."""
    ratio = _at(schedule.sqrt_recipm1_alphas_cumprod, t)
    return _at(schedule.sqrt_recip_alphas_cumprod, t) * x_t - ratio * eps


def eps_from_x_0(schedule: Schedule, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
    """eps = (x_t - signal * x_0) / sigma (Ho et al., Eq. 4 solved)."""
    signal, sigma = _signal_sigma(schedule, t)
    return (x_t - signal * x_0) / sigma


def v_from_x_0_and_eps(schedule: Schedule, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """v = signal * eps - sigma * x_0 (Salimans & Ho 2022, section 4)."""
    signal, sigma = _signal_sigma(schedule, t)
    return signal * eps - sigma * x_0


def x_0_from_v(schedule: Schedule, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """x_0 = signal * x_t - sigma * v (Salimans & Ho 2022, section 4)."""
    signal, sigma = _signal_sigma(schedule, t)
    return signal * x_t - sigma * v


def eps_from_v(schedule: Schedule, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """eps = sigma * x_t + signal * v (Salimans & Ho 2022, appendix D)."""
    signal, sigma = _signal_sigma(schedule, t)
    return sigma * x_t + signal * v


def prediction_target(
    schedule: Schedule, x_0: Tensor, noise: Tensor, t: Tensor, prediction_type: str
) -> Tensor:
    """The output that training asks for: the noise ("eps"), the image ("x_0") or "v"."""
    v = v_from_x_0_and_eps(schedule, x_0, noise, t)
    return {"eps": noise, "x_0": x_0, "v": v}[prediction_type]


def to_x_0_and_eps(
    schedule: Schedule, output: Tensor, x_t: Tensor, t: Tensor, prediction_type: str, clip_x_0: bool
) -> tuple[Tensor, Tensor]:
    """(x_0, eps) of a network's output; `clip_x_0` clamps x_0 to [-1, 1] and re-derives eps."""
    if prediction_type == "eps":
        x_0, eps = x_0_from_eps(schedule, x_t, t, output), output
    elif prediction_type == "x_0":
        x_0, eps = output, eps_from_x_0(schedule, x_t, t, output)
    elif prediction_type == "v":
        x_0, eps = x_0_from_v(schedule, x_t, t, output), eps_from_v(schedule, x_t, t, output)
    else:
        raise ValueError(f"unknown prediction_type {prediction_type!r}")
    if clip_x_0:
        x_0 = x_0.clamp(-1.0, 1.0)
        eps = eps_from_x_0(schedule, x_t, t, x_0)
    return x_0, eps


def training_loss(
    model: Model,
    schedule: Schedule,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    prediction_type: str = "eps",
    loss_type: str = "l2",
) -> Tensor:
    """The loss [B] of each example, the mean over its pixels (Ho et al. 2020, Eq. 14)."""
    output = model(q_sample(schedule, x_0, t, noise), t)
    target = prediction_target(schedule, x_0, noise, t, prediction_type)
    return LOSSES[loss_type](output, target, reduction="none").flatten(1).mean(dim=1)
