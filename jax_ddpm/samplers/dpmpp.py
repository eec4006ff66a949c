"""DPM-Solver++: a first-order step at a better x_0 (Lu et al. 2022, arXiv:2211.01095).

With h the step in log-SNR, the exact solution is a first-order step (`move`) at a weighted mean of
x_0 along the way. The solvers differ in the points through which they extrapolate x_0: two (2M, 2M
SDE), three (3M), or the start and the middle of a pair of steps (2S).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jax_ddpm.errors import check_choice
from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import (
    PerImage,
    Sampler,
    SamplerState,
    broadcast_levels,
    log_snr_step,
    move,
    move_with_noise,
)
from jax_ddpm.samplers.multistep import History, choose_order, empty_history, phi, short_grid

CORRECTIONS = ("midpoint", "heun")
CURVATURES = ("published", "exact")


def dpmpp_2m(*, correction: str = "midpoint", num_steps: int | None = None) -> Sampler:
    """DPM-Solver++(2M): x_0 extrapolated from this step and the last (Lu et al., algorithm 2).

    `correction` weighs the difference of the two by 1/2 ("midpoint") or by its exact integral
    ("heun"). With `num_steps` below 15, the last step is of first order even where it does not end
    at the clean image.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> diffusion, shape = jd.Diffusion(jd.named_schedule("cosine", 1000)), (2, 8, 8, 1)
        >>> def apply_fn(params, x_t, t):
        ...     return params * x_t
        >>> diffusion.sample(
        ...     apply_fn, 0.5, jax.random.key(0), shape, sampler=jd.dpmpp_2m(), steps=5
        ... ).shape
        (2, 8, 8, 1)
    """
    correction = check_choice("correction", correction, CORRECTIONS)

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        history: History = state.memory
        prediction = denoise_fn(state.x_t, cur)
        h = log_snr_step(cur, nxt)
        weight = 0.5 if correction == "midpoint" else phi(2, -h) / phi(1, -h)
        second = prediction.x_0 + weight * extrapolate(prediction.x_0, history, h)
        order = choose_order(2, history.num_done, nxt, short_grid(num_steps))
        x_0 = jnp.where(order == 2, second, prediction.x_0)
        x_t = move(state.x_t, x_0, cur, nxt)
        return SamplerState(x_t, history.append(prediction.x_0, h)), prediction

    return Sampler(lambda x_T: SamplerState(x_T, empty_history(x_T, 1)), step)


def dpmpp_2m_sde(*, correction: str = "midpoint", num_steps: int | None = None) -> Sampler:
    """SDE-DPM-Solver++(2M): 2M with fresh noise in each step (Lu et al., appendix D)."""
    correction = check_choice("correction", correction, CORRECTIONS)

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        history: History = state.memory
        prediction = denoise_fn(state.x_t, cur)
        h = log_snr_step(cur, nxt)
        weight = 0.5 if correction == "midpoint" else phi(2, -2 * h) / phi(1, -2 * h)
        second = prediction.x_0 + weight * extrapolate(prediction.x_0, history, h)
        order = choose_order(2, history.num_done, nxt, short_grid(num_steps))
        x_0 = jnp.where(order == 2, second, prediction.x_0)
        x_t = move_with_noise(state.x_t, x_0, noise, cur, nxt)
        return SamplerState(x_t, history.append(prediction.x_0, h)), prediction

    return Sampler(lambda x_T: SamplerState(x_T, empty_history(x_T, 1)), step)


def dpmpp_3m(*, curvature: str = "published", num_steps: int | None = None) -> Sampler:
    """DPM-Solver++(3M): x_0 extrapolated from three steps (code of Lu et al.).

    All published codes take half of the curvature that third order needs, so the error falls as
    with second order; "exact" takes the whole of it. With `num_steps` below 15, the last two steps
    are of second and first order.
    """
    curvature = check_choice("curvature", curvature, CURVATURES)

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        history: History = state.memory
        prediction = denoise_fn(state.x_t, cur)
        x_0, h = prediction.x_0, log_snr_step(cur, nxt)
        slope = extrapolate(x_0, history, h)
        last_change = history.values[0] - history.values[1]
        before = h / history.hs[1] * last_change  # the last step's slope
        r_0, r_1 = history.hs[0] / h, history.hs[1] / h
        bend = (slope - before) / (r_0 + r_1)
        third = x_0 + phi(2, -h) / phi(1, -h) * (slope + r_0 * bend)
        third += (2 if curvature == "exact" else 1) * phi(3, -h) / phi(1, -h) * bend
        order = choose_order(3, history.num_done, nxt, short_grid(num_steps))
        best = jnp.where(order == 3, third, jnp.where(order == 2, x_0 + slope / 2, x_0))
        x_t = move(state.x_t, best, cur, nxt)
        return SamplerState(x_t, history.append(x_0, h)), prediction

    return Sampler(lambda x_T: SamplerState(x_T, empty_history(x_T, 2)), step)


def extrapolate(x_0: Images, history: History, h: PerImage) -> Images:
    """The change of x_0 over the next step h, if it goes on as over the last one."""
    return h / history.hs[0] * (x_0 - history.values[0])


class Pair(NamedTuple):
    """Where a pair of steps began; `is_open` before its second step."""

    is_open: Bool[Array, ""]
    x_t: Images
    x_0: Images
    level: Level


def dpmpp_2s() -> Sampler:
    """DPM-Solver++(2S) with one evaluation per step of the grid (Lu et al. 2022, algorithm 1).

    The first step of a pair is of first order. The second redoes both, using its own prediction as
    the midpoint. The step to the clean image stands alone.
    """

    def init(x_T: Images) -> SamplerState:
        zeros = jnp.zeros((len(x_T), 1, 1, 1), x_T.dtype)
        level = Level(zeros[:, 0, 0, 0], zeros, zeros + 1)
        return SamplerState(x_T, Pair(jnp.zeros((), bool), x_T, jnp.zeros_like(x_T), level))

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        pair: Pair = state.memory
        prediction = denoise_fn(state.x_t, cur)
        single = move(state.x_t, prediction.x_0, cur, nxt)
        ratio = log_snr_step(pair.level, nxt) / log_snr_step(pair.level, cur)
        x_0 = pair.x_0 + ratio / 2 * (prediction.x_0 - pair.x_0)
        is_second = pair.is_open & (nxt.sigma > 0)
        x_t = jnp.where(is_second, move(pair.x_t, x_0, pair.level, nxt), single)
        start = broadcast_like(cur, pair.level)
        return SamplerState(x_t, Pair(~pair.is_open, state.x_t, prediction.x_0, start)), prediction

    return Sampler(init=init, step=step)


def broadcast_like(level: Level, like: Level) -> Level:
    """`level` with the shapes and dtypes of `like`."""
    fields = zip(level, like, strict=True)
    return Level(*(jnp.broadcast_to(a, b.shape).astype(b.dtype) for a, b in fields))
