"""DPM-Solver++(2M) from an image up to its noise."""

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jax_ddpm.errors import check_choice
from jax_ddpm.process.levels import Level
from jax_ddpm.process.predictions import eps_from_x_0
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import Sampler, SamplerState, broadcast_levels, log_snr_step
from jax_ddpm.samplers.dpmpp import CORRECTIONS
from jax_ddpm.samplers.multistep import History, choose_order, empty_history, phi, short_grid


def dpmpp_2m_inverse(*, correction: str = "midpoint", num_steps: int | None = None) -> Sampler:
    """`dpmpp_2m` from an image up to its noise, on an ascending grid from the clean image.

    The formulas are those of `dpmpp_2m` with a step h < 0 in log-SNR, and so are the options. The
    clean image has no eps: the first step adds the eps that the network sees in it when it is told
    the next level, as in `ddim_inverse`.
    """
    correction = check_choice("correction", correction, CORRECTIONS)

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        history: History = state.memory
        clean = cur.sigma == 0
        told = choose_level(clean, nxt, cur)
        prediction = denoise_fn(state.x_t, told)
        h = jnp.maximum(log_snr_step(told, nxt), -100)  # 0 from the clean image, -100 to pure noise
        # There is a slope after a step of finite length; the level of pure noise is not finite.
        follows = (history.hs[0] < 0) & (nxt.signal > 0)
        order = choose_order(2, history.num_done, nxt, short_grid(num_steps))
        weight = 0.5 if correction == "midpoint" else phi(2, -h) / phi(1, -h)
        slope = (prediction.x_0 - history.values[0]) / jnp.where(follows, history.hs[0], 1)
        x_0 = prediction.x_0 + jnp.where(follows & (order == 2), weight * h * slope, 0)
        x_t = nxt.signal * x_0 + nxt.sigma * eps_from_x_0(told, state.x_t, x_0)
        first = nxt.signal * state.x_t + nxt.sigma * prediction.eps
        x_t = jnp.where(clean, first, x_t)
        return SamplerState(x_t, history.append(prediction.x_0, h)), prediction

    return Sampler(lambda x_T: SamplerState(x_T, empty_history(x_T, 1)), step, direction="up")


def choose_level(first: Bool[Array, "..."], one: Level, other: Level) -> Level:
    """The level `one` where `first` is true, and `other` elsewhere."""
    t = jnp.where(first.reshape(one.t.shape), one.t, other.t)
    return Level(t, *(jnp.where(first, a, b) for a, b in zip(one[1:], other[1:], strict=True)))
