"""DPM-Solver-2: a second look in the middle of each step, without and with noise (k-diffusion).

In the variables x = x_t / signal and s = sigma / signal the equation is dx / ds = (x - x_0) / s.
The middle is the one in log s; it lies between two timesteps.
"""

import jax
import jax.numpy as jnp

from jax_ddpm.process.grids import LARGE_SIGMA
from jax_ddpm.process.levels import Level
from jax_ddpm.process.predictions import eps_from_x_0
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import (
    LevelFn,
    PerImage,
    Sampler,
    SamplerState,
    broadcast_levels,
    expand_level,
    guard_signal,
    is_far,
    sigma_ratio,
    to_s,
)


def kdpm2(*, level_of_sigma: LevelFn, most_sigma: float = LARGE_SIGMA) -> Sampler:
    """DPM-Solver-2 (Lu et al. 2022, algorithm 1, r_1 = 1/2): x + (s' - s) d with the middle's d.

    Two evaluations per step, one in the step to the clean image. `level_of_sigma(s)` gives the
    level in the middle (see levels.py). Steps from sigma / signal above `most_sigma` are of first
    order, with one evaluation.
    """

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        x, prediction = take_midpoint_step(
            state.x_t, cur, to_s(nxt), level_of_sigma, denoise_fn, most_sigma
        )
        return SamplerState(nxt.signal * x), prediction

    return Sampler(init=SamplerState, step=step)


def kdpm2_ancestral(*, level_of_sigma: LevelFn, most_sigma: float = LARGE_SIGMA) -> Sampler:
    """A step of `kdpm2` to a level below the next one, then fresh noise up to it (k-diffusion).

    The noise is exact, so the distribution is as accurate as a step of `kdpm2`.
    """

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        down = sigma_ratio(cur, nxt)  # s_down / s', where s_down = s'^2 / s
        up = jnp.sqrt((1 - down) * (1 + down))  # s_up / s', where s_up^2 = s'^2 - s_down^2
        x, prediction = take_midpoint_step(
            state.x_t, cur, down * to_s(nxt), level_of_sigma, denoise_fn, most_sigma
        )
        return SamplerState(nxt.signal * x + nxt.sigma * up * noise), prediction

    return Sampler(init=SamplerState, step=step)


def take_midpoint_step(
    x_t: Images,
    cur: Level,
    s_next: PerImage,
    level_of_sigma: LevelFn,
    denoise_fn: DenoiseFn,
    most_sigma: float,
) -> tuple[Images, Prediction]:
    """x at s_next, and the prediction at the start of the step."""
    far = is_far(cur, most_sigma)
    safe = guard_signal(cur, far)
    x, s = x_t / safe.signal, to_s(safe)
    prediction = denoise_fn(x_t, cur)
    straight = prediction.x_0 + s_next * eps_from_x_0(cur, x_t, prediction.x_0)

    def look_at_middle() -> Images:
        middle = jnp.sqrt(s * jnp.where(s_next > 0, s_next, s))  # exp of the mean of log s
        mid = expand_level(level_of_sigma(middle), x)
        mid = mid._replace(t=mid.t.reshape(cur.t.shape))
        x_mid = x + (middle - s) * (x - prediction.x_0) / s
        d_mid = (x_mid - denoise_fn(mid.signal * x_mid, mid).x_0) / middle
        return x + (s_next - s) * d_mid

    # The clean image has no middle. `cond`, not `where`, so that its evaluation is saved.
    leads_on = (s_next > 0) & ~far
    found = jax.lax.cond(jnp.any(leads_on), look_at_middle, lambda: x)
    return jnp.where(leads_on, found, straight), prediction
