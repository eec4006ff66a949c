"""Denoising diffusion implicit models (Song et al. 2021)."""

import jax.numpy as jnp

from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import Sampler, SamplerState, beta_between


def ddim(eta: float = 0.0) -> Sampler:
    """The implicit sampler (Song et al. 2021, Eqs. 12 and 16).

    eta = 0 is deterministic given x_T; eta = 1 is ancestral sampling with the small variance. With
    eta = 0 a step may also go up, to a noisier level (`ddim_reverse_sample` of OpenAI's code).
    """

    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        prediction = denoise_fn(state.x_t, cur)
        if eta == 0:  # also where there is no fraction: from and to noise without a signal
            x_t = nxt.signal * prediction.x_0 + nxt.sigma * prediction.eps
            return SamplerState(x_t), prediction
        std = eta * (nxt.sigma / cur.sigma) * jnp.sqrt(jnp.maximum(beta_between(cur, nxt), 0))
        kept = (cur.signal / nxt.signal) * (nxt.sigma / cur.sigma)
        # nxt.sigma^2 - std^2, without the difference of two nearly equal numbers
        direction = nxt.sigma * jnp.sqrt(jnp.maximum(1 - eta**2 + (eta * kept) ** 2, 0))
        x_t = nxt.signal * prediction.x_0 + direction * prediction.eps + std * noise
        return SamplerState(x_t), prediction

    return Sampler(init=SamplerState, step=step)


def ddim_inverse() -> Sampler:
    """From an image back to its noise, on an ascending grid that starts at the clean image.

    Solves the step of `ddim` from `nxt` to `cur` for the noisier x_t, with eps at the less noisy
    one in place of its own; the network is told the t it goes to (diffusers' inverse DDIM).
    The network's own eps is needed: `make_denoise_fn(rederive_eps=False)` or no clipping.
    """

    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        prediction = denoise_fn(state.x_t, cur._replace(t=nxt.t))
        x_t = nxt.signal * prediction.x_0 + nxt.sigma * prediction.eps
        return SamplerState(x_t), prediction

    return Sampler(init=SamplerState, step=step)
