"""From a network to a denoiser: the only place that knows prediction type and clipping."""

from typing import Any

import jax.numpy as jnp

from jax_ddpm.diffusion import (
    ApplyFn,
    DenoiseFn,
    Images,
    Prediction,
    PredictionType,
    eps_from_x_0,
    to_prediction,
)
from jax_ddpm.schedules import Level


def make_denoise_fn(
    apply_fn: ApplyFn,
    params: Any,
    *,
    prediction_type: PredictionType = "eps",
    clip_x_0: bool = True,
    rederive_eps: bool = True,
    **network_args: Any,
) -> DenoiseFn:
    """A function (x_t, level) -> Prediction(x_0, eps) of the network's output.

    `clip_x_0` clips x_0 to [-1, 1], as the sampler of Ho et al. 2020 does (it is not in the paper).
    eps then follows from the clipped x_0, so that both stay consistent; `rederive_eps=False` keeps
    the network's own eps (the default of diffusers' DDIM). `network_args` go to `apply_fn`.
    """

    def denoise(x_t: Images, level: Level) -> Prediction:
        t = jnp.broadcast_to(level.t, x_t.shape[:1])
        output = apply_fn(params, x_t, t, **network_args).astype(x_t.dtype)
        prediction = to_prediction(output, x_t, level, prediction_type)
        if not clip_x_0:
            return prediction
        x_0 = jnp.clip(prediction.x_0, -1, 1)
        eps = eps_from_x_0(level, x_t, x_0) if rederive_eps else prediction.eps
        return Prediction(x_0, eps)

    return denoise
