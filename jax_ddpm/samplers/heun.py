"""Heun's method with churn (Karras et al. 2022, algorithm 2).

Written in their variables: x = x_t / signal and s = sigma / signal.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jax_ddpm.errors import UserError
from jax_ddpm.process.checks import check_range
from jax_ddpm.process.grids import LARGE_SIGMA
from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import (
    LevelFn,
    Sampler,
    SamplerState,
    broadcast_levels,
    guard_signal,
    is_far,
    move,
    to_s,
)

ChurnFn = Callable[[Images, Images, Level, Bool[Array, "..."]], tuple[Images, Level]]


def heun(
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = float("inf"),
    churn_noise: float = 1.0,
    num_steps: int | None = None,
    level_of_sigma: LevelFn | None = None,
    most_sigma: float = LARGE_SIGMA,
) -> Sampler:
    """Second order from a second look at the end of each step: two evaluations, one in the last.

    With `churn` each step starts by adding noise: s grows by the factor
    1 + min(churn / num_steps, sqrt(2) - 1) where churn_min <= s <= churn_max, with noise of
    standard deviation `churn_noise`. `level_of_sigma(s)` then gives the level (see levels.py).
    Steps from sigma / signal above `most_sigma` are of first order, with one evaluation and no
    churn, because a second look there magnifies errors; the published method has no such limit.
    Raises UserError for churn without num_steps or level_of_sigma, and for its settings without it.
    """
    add_churn = make_churn(churn, (churn_min, churn_max), churn_noise, num_steps, level_of_sigma)

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        far = is_far(cur, most_sigma)
        x_hat, hat = add_churn(state.x_t / guard_signal(cur, far).signal, noise, cur, far)
        safe = guard_signal(hat, far)
        prediction = denoise_fn(safe.signal * x_hat, hat)
        d = (x_hat - prediction.x_0) / to_s(safe)  # line 7
        x = x_hat + (to_s(nxt) - to_s(safe)) * d  # line 8
        corrects = (nxt.sigma > 0) & ~far

        def correct() -> Images:
            d_next = (x - denoise_fn(nxt.signal * x, nxt).x_0) / to_s(nxt)  # line 10
            return x_hat + (to_s(nxt) - to_s(safe)) * (d + d_next) / 2  # line 11

        # The clean image has no slope. `cond`, not `where`, so that its evaluation is saved.
        x = jnp.where(corrects, jax.lax.cond(jnp.any(corrects), correct, lambda: x), prediction.x_0)
        x_t = jnp.where(far, move(state.x_t, prediction.x_0, cur, nxt), nxt.signal * x)
        return SamplerState(x_t), prediction

    return Sampler(init=SamplerState, step=step)


def make_churn(
    churn: float,
    limits: tuple[float, float],
    churn_noise: float,
    num_steps: int | None,
    level_of_sigma: LevelFn | None,
) -> ChurnFn:
    """Lines 4 to 6: a function that leads from s to s_hat = s + gamma s, unless s is `far`."""
    check_range("churn", churn, 0)
    if not churn:
        if (*limits, churn_noise) != (0, float("inf"), 1):
            raise UserError("churn_min, churn_max and churn_noise have no effect without churn")
        return lambda x, noise, cur, far: (x, cur)
    if num_steps is None or level_of_sigma is None:
        raise UserError("churn needs num_steps and level_of_sigma: it adds noise to each level")
    gamma_max = min(churn / num_steps, 2**0.5 - 1)

    def add_churn(
        x: Images, noise: Images, cur: Level, far: Bool[Array, "..."]
    ) -> tuple[Images, Level]:
        s = to_s(guard_signal(cur, far))
        gamma = jnp.where(~far & (limits[0] <= s) & (s <= limits[1]), gamma_max, 0)
        hat = level_of_sigma(s + gamma * s)
        x_hat = x + jnp.sqrt((1 + gamma) ** 2 - 1) * s * churn_noise * noise
        same = gamma == 0  # then level_of_sigma would only round
        signal, sigma = (jnp.where(same, a, b) for a, b in zip(cur[1:], hat[1:], strict=True))
        t = jnp.where(same.reshape(cur.t.shape), cur.t, hat.t.reshape(cur.t.shape))
        return x_hat, Level(t, signal, sigma)

    return add_churn
