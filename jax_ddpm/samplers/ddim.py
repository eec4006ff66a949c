"""Denoising diffusion implicit models (Song et al. 2021)."""

import jax.numpy as jnp

from jax_ddpm.diffusion import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import Sampler, SamplerState, beta_between
from jax_ddpm.schedules import Level


def ddim(eta: float = 0.0) -> Sampler:
    """The implicit sampler (Song et al. 2021, Eqs. 12 and 16).

    eta = 0 is deterministic given x_T; eta = 1 is ancestral sampling with the small variance.
    """

    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        prediction = denoise_fn(state.x_t, cur)
        std = eta * (nxt.sigma / cur.sigma) * jnp.sqrt(beta_between(cur, nxt))
        kept = (cur.signal / nxt.signal) * (nxt.sigma / cur.sigma)
        # nxt.sigma^2 - std^2, without the difference of two nearly equal numbers
        direction = nxt.sigma * jnp.sqrt(jnp.maximum(1 - eta**2 + (eta * kept) ** 2, 0))
        x_t = nxt.signal * prediction.x_0 + direction * prediction.eps + std * noise
        return SamplerState(x_t), prediction

    return Sampler(init=SamplerState, step=step)
