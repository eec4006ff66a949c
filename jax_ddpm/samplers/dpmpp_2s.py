"""DPM-Solver++(2S): steps in pairs, of which the second repairs the first (Lu et al. 2022)."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import Sampler, SamplerState, log_snr_step, move


class Pair(NamedTuple):
    """Where a pair of steps began; `open` before its second step."""

    open: Bool[Array, ""]
    x_t: Images
    x_0: Images
    level: Level


def dpmpp_2s() -> Sampler:
    """DPM-Solver++(2S) with one evaluation per step of the grid (Lu et al. 2022, algorithm 1).

    The first step of a pair is of first order. The second goes the whole way of both again, with
    the prediction of its own start as the one in between. The step to the clean image stands alone.
    """

    def init(x_T: Images) -> SamplerState:
        zero = jnp.zeros((), x_T.dtype)
        nowhere = Level(zero, zero, zero + 1)
        return SamplerState(x_T, Pair(jnp.zeros((), bool), x_T, jnp.zeros_like(x_T), nowhere))

    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        pair: Pair = state.memory
        prediction = denoise_fn(state.x_t, cur)
        single = move(state.x_t, prediction.x_0, cur, nxt)
        ratio = log_snr_step(pair.level, nxt) / log_snr_step(pair.level, cur)
        x_0 = pair.x_0 + ratio / 2 * (prediction.x_0 - pair.x_0)
        second = pair.open & (nxt.sigma > 0)
        x_t = jnp.where(second, move(pair.x_t, x_0, pair.level, nxt), single)
        start = cur._replace(t=cur.t.astype(pair.level.t.dtype))
        begun = Pair(~pair.open, state.x_t, prediction.x_0, start)
        return SamplerState(x_t, begun), prediction

    return Sampler(init=init, step=step)
