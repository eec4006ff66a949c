"""Heun's method with churn (Karras et al. 2022, algorithm 2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import LevelFn, Sampler, SamplerState


def heun(
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = float("inf"),
    churn_noise: float = 1.0,
    num_steps: int | None = None,
    level_of_sigma: LevelFn | None = None,
) -> Sampler:
    """Second order by a second look at the end of each step, two network evaluations but the last.

    With `churn` each step starts by adding noise: s = sigma / signal grows by the factor
    1 + min(churn / num_steps, sqrt(2) - 1), where churn_min <= s <= churn_max, with noise of
    standard deviation `churn_noise`. `level_of_sigma(s)` then tells the level (grids.py). Raises
    ValueError for churn without num_steps or level_of_sigma.
    """
    if churn and (num_steps is None or level_of_sigma is None):
        raise ValueError("churn needs the number of steps and the level of each sigma")
    gamma = min(churn / num_steps, 2**0.5 - 1) if num_steps else 0.0

    def churned(x_t: Images, noise: Images, cur: Level) -> tuple[Images, Level]:
        if not gamma or level_of_sigma is None:
            return x_t, cur
        s = cur.sigma / cur.signal
        inside = (churn_min <= s) & (s <= churn_max)
        more = level_of_sigma(jnp.where(inside, (1 + gamma) * s, s))
        grown = jnp.sqrt((1 + gamma) ** 2 - 1) * s
        noisier = more.signal * (x_t / cur.signal + grown * churn_noise * noise)
        chosen = Level(*(jnp.where(inside, a, b) for a, b in zip(more, cur, strict=True)))
        return jnp.where(inside, noisier, x_t), chosen

    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        x_t, cur = churned(state.x_t, noise, cur)
        prediction = denoise_fn(x_t, cur)
        slope = slope_of(x_t, prediction.x_0, cur)
        s, s_next = cur.sigma / cur.signal, nxt.sigma / nxt.signal
        end = nxt.signal * (x_t / cur.signal + (s_next - s) * slope)

        def corrected() -> Images:
            second = slope_of(end, denoise_fn(end, nxt).x_0, nxt)
            return nxt.signal * (x_t / cur.signal + (s_next - s) * (slope + second) / 2)

        # the clean image has no slope: there the first look has to do
        x_t = jax.lax.cond(nxt.sigma > 0, corrected, lambda: nxt.signal * prediction.x_0)
        return SamplerState(x_t), prediction

    return Sampler(init=SamplerState, step=step)


def slope_of(x_t: Images, x_0: Images, level: Level) -> Float[Array, "b h w c"]:
    """dx/ds of x = x_t / signal and s = sigma / signal: (x - x_0) / s (Karras et al., Eq. 3)."""
    return (x_t - level.signal * x_0) / level.sigma
