"""SDE-DPM-Solver++ with a second look in the middle of each step (k-diffusion)."""

import jax
import jax.numpy as jnp

from jax_ddpm.process.grids import LARGE_SIGMA
from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import (
    LevelFn,
    Sampler,
    SamplerState,
    broadcast_levels,
    expand_level,
    guard_signal,
    is_far,
    move_with_noise,
    to_s,
)


def dpmpp_sde(*, level_of_sigma: LevelFn, most_sigma: float = LARGE_SIGMA) -> Sampler:
    """A noisy step to the middle in log s, then the whole step with the x_0 predicted there.

    Two evaluations per step, one in the step to the clean image. `level_of_sigma(s)` gives the
    level in the middle (see levels.py). Both moves take the noise of the step; in k-diffusion they
    take increments of one Brownian motion, with a correlation of sqrt(1/2) in short steps. Steps
    from sigma / signal above `most_sigma` are of first order, with one evaluation.
    """

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        prediction = denoise_fn(state.x_t, cur)
        far = is_far(cur, most_sigma)
        s = to_s(guard_signal(cur, far))

        def look_at_middle() -> Images:
            middle = jnp.sqrt(s * jnp.where(leads_on, to_s(nxt), s))
            mid = expand_level(level_of_sigma(middle), noise)
            mid = mid._replace(t=mid.t.reshape(cur.t.shape))
            x_mid = move_with_noise(state.x_t, prediction.x_0, noise, cur, mid)
            return denoise_fn(x_mid, mid).x_0

        # The clean image has no middle. `cond`, not `where`, so that its evaluation is saved.
        leads_on = (nxt.sigma > 0) & ~far
        x_0 = jax.lax.cond(jnp.any(leads_on), look_at_middle, lambda: prediction.x_0)
        x_0 = jnp.where(leads_on, x_0, prediction.x_0)
        return SamplerState(move_with_noise(state.x_t, x_0, noise, cur, nxt)), prediction

    return Sampler(init=SamplerState, step=step)
