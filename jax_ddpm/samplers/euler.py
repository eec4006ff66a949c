"""Euler's method on the probability-flow equation, without and with noise (Karras et al. 2022).

In the variables x = x_t / signal and s = sigma / signal the equation is dx / ds = (x - x_0) / s.
"""

import jax.numpy as jnp

from jax_ddpm.process.levels import Level
from jax_ddpm.process.predictions import eps_from_x_0
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import Sampler, SamplerState, broadcast_levels, move, sigma_ratio


def euler() -> Sampler:
    """One straight step, x + (s' - s) (x - x_0) / s (Karras et al. 2022, Eq. 3); see `move`.

    This is `ddim` with eta = 0, except that eps follows from the clipped x_0.
    """

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        prediction = denoise_fn(state.x_t, cur)
        return SamplerState(move(state.x_t, prediction.x_0, cur, nxt)), prediction

    return Sampler(init=SamplerState, step=step)


def euler_ancestral() -> Sampler:
    """An Euler step to a level below the next one, then fresh noise up to it (k-diffusion).

    Where signal^2 + sigma^2 = 1 this is `ddim` with eta = 1, except that eps follows from the
    clipped x_0.
    """

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        prediction = denoise_fn(state.x_t, cur)
        eps = eps_from_x_0(cur, state.x_t, prediction.x_0)  # the slope (x - x_0) / s
        down = sigma_ratio(cur, nxt)  # s_down / s', where s_down = s'^2 / s
        up = jnp.sqrt((1 - down) * (1 + down))  # s_up / s', where s_up^2 = s'^2 - s_down^2
        # x_0 + s_down eps + s_up noise, times the signal
        x_t = nxt.signal * prediction.x_0 + nxt.sigma * (down * eps + up * noise)
        return SamplerState(x_t), prediction

    return Sampler(init=SamplerState, step=step)
