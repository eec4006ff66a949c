"""Euler's method on the probability-flow equation, without and with noise (Karras et al. 2022)."""

import jax.numpy as jnp

from jax_ddpm.process.levels import Level
from jax_ddpm.process.predictions import eps_from_x_0
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import Sampler, SamplerState, move, noise_kept


def euler() -> Sampler:
    """One straight step along dx/ds at x_t / signal, s = sigma / signal (Karras et al., Eq. 3).

    In the coordinates of x_t that is `ddim` with eta = 0, and eps from the clipped x_0.
    """

    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        prediction = denoise_fn(state.x_t, cur)
        return SamplerState(move(state.x_t, prediction.x_0, cur, nxt)), prediction

    return Sampler(init=SamplerState, step=step)


def euler_ancestral() -> Sampler:
    """An Euler step to below the next level, and fresh noise up to it (K. Crowson's k-diffusion).

    It goes down to s'^2 / s and adds sqrt(s'^2 - s'^4 / s^2) of noise, s = sigma / signal. Where
    signal^2 + sigma^2 = 1 that is `ddim` with eta = 1, and eps from the clipped x_0.
    """

    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        prediction = denoise_fn(state.x_t, cur)
        kept = noise_kept(cur, nxt)
        eps = eps_from_x_0(cur, state.x_t, prediction.x_0)
        fresh = kept * eps + jnp.sqrt((1 - kept) * (1 + kept)) * noise
        return SamplerState(nxt.signal * prediction.x_0 + nxt.sigma * fresh), prediction

    return Sampler(init=SamplerState, step=step)
