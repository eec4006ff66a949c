"""Ancestral sampling (Ho et al. 2020, algorithm 2)."""

from typing import Literal

import jax.numpy as jnp

from jax_ddpm.diffusion import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import Sampler, SamplerState, beta_between
from jax_ddpm.schedules import Level

Variance = Literal["fixed_small", "fixed_large"]


def ddpm(variance: Variance = "fixed_small") -> Sampler:
    """Draw x_{t-1} from q(x_{t-1} | x_t, x_0) at the predicted x_0 (Ho et al. 2020, Eqs. 6, 7, 11).

    On a sub-sequence of timesteps the posterior is that of the skipped chain. The variance is
    beta-tilde ("fixed_small") or beta ("fixed_large"); no noise is added on the last step.
    """

    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        prediction = denoise_fn(state.x_t, cur)
        beta = beta_between(cur, nxt)
        coef1 = nxt.signal * beta / cur.sigma**2
        coef2 = (cur.signal / nxt.signal) * (nxt.sigma / cur.sigma) ** 2
        mean = coef1 * prediction.x_0 + coef2 * state.x_t
        large = jnp.where(nxt.t < 0, 0, beta)
        var = large if variance == "fixed_large" else beta * (nxt.sigma / cur.sigma) ** 2
        return SamplerState(mean + jnp.sqrt(var) * noise), prediction

    return Sampler(init=SamplerState, step=step)
