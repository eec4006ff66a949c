"""A small PyTorch DDPM, written from the papers to check the JAX library. It imports no JAX.

Images are float NCHW in [-1, 1]; t is 0..T-1 and t = 0 means noised once.
"""

from .diffusion import (
    eps_from_v,
    eps_from_x_0,
    prediction_target,
    q_posterior,
    q_sample,
    q_step,
    to_x_0_and_eps,
    training_loss,
    v_from_x_0_and_eps,
    x_0_from_eps,
    x_0_from_v,
)
from .sampler import ddim_step, ddpm_step
from .schedule import (
    Schedule,
    cosine_betas,
    linear_betas,
    make_schedule,
    quadratic_betas,
    sigmoid_betas,
    sigmoid_cumprod_betas,
)
from .train import Trainer, ema_update
from .unet import UNet, timestep_embedding

__all__ = [
    "Schedule",
    "Trainer",
    "UNet",
    "cosine_betas",
    "ddim_step",
    "ddpm_step",
    "ema_update",
    "eps_from_v",
    "eps_from_x_0",
    "linear_betas",
    "make_schedule",
    "prediction_target",
    "q_posterior",
    "q_sample",
    "q_step",
    "quadratic_betas",
    "sigmoid_betas",
    "sigmoid_cumprod_betas",
    "timestep_embedding",
    "to_x_0_and_eps",
    "training_loss",
    "v_from_x_0_and_eps",
    "x_0_from_eps",
    "x_0_from_v",
]
