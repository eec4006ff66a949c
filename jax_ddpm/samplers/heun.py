"""Heun's method with churn (Karras et al. 2022, algorithm 2).

Written in their variables: x = x_t / signal and s = sigma / signal.
"""

import jax
import jax.numpy as jnp

from jax_ddpm.errors import UserError
from jax_ddpm.process.checks import check_range
from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import LevelFn, Sampler, SamplerState, broadcast_levels, to_s


def heun(
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = float("inf"),
    churn_noise: float = 1.0,
    num_steps: int | None = None,
    level_of_sigma: LevelFn | None = None,
) -> Sampler:
    """Second order from a second look at the end of each step: two evaluations, one in the last.

    With `churn` each step starts by adding noise: s grows by the factor
    1 + min(churn / num_steps, sqrt(2) - 1) where churn_min <= s <= churn_max, with noise of
    standard deviation `churn_noise`. `level_of_sigma(s)` then gives the level (see levels.py).
    Raises UserError for churn without num_steps or level_of_sigma.
    """
    check_range("churn", churn, 0)
    if churn and (num_steps is None or level_of_sigma is None):
        raise UserError("churn needs num_steps and level_of_sigma: it adds noise to each level")
    gamma_max = min(churn / num_steps, 2**0.5 - 1) if num_steps else 0.0

    def add_churn(x: Images, noise: Images, cur: Level) -> tuple[Images, Level]:
        """Lines 4 to 6: from s to s_hat = s + gamma s."""
        if not gamma_max or level_of_sigma is None:
            return x, cur
        s = to_s(cur)
        gamma = jnp.where((churn_min <= s) & (s <= churn_max), gamma_max, 0)
        hat = level_of_sigma(s + gamma * s)
        x_hat = x + jnp.sqrt((1 + gamma) ** 2 - 1) * s * churn_noise * noise
        same = gamma == 0  # then level_of_sigma would only round
        signal, sigma = (jnp.where(same, a, b) for a, b in zip(cur[1:], hat[1:], strict=True))
        t = jnp.where(same.reshape(cur.t.shape), cur.t, hat.t.reshape(cur.t.shape))
        return x_hat, Level(t, signal, sigma)

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        def slope_at(x: Images, level: Level) -> tuple[Images, Prediction]:
            prediction = denoise_fn(level.signal * x, level)
            return (x - prediction.x_0) / to_s(level), prediction

        x_hat, hat = add_churn(state.x_t / cur.signal, noise, cur)
        d, prediction = slope_at(x_hat, hat)  # line 7
        x = x_hat + (to_s(nxt) - to_s(hat)) * d  # line 8

        def correct() -> Images:
            d_next, _ = slope_at(x, nxt)  # line 10
            return x_hat + (to_s(nxt) - to_s(hat)) * (d + d_next) / 2  # line 11

        # The clean image has no slope. `cond`, not `where`, so that its evaluation is saved.
        x = jnp.where(
            nxt.sigma > 0,
            jax.lax.cond(jnp.any(nxt.sigma > 0), correct, lambda: x),
            prediction.x_0,
        )
        return SamplerState(nxt.signal * x), prediction

    return Sampler(init=SamplerState, step=step, starts_at_noise=False)
