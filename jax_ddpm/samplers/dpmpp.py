"""DPM-Solver++: second and third order from earlier predictions (Lu et al. 2022)."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import Sampler, SamplerState, StepFn, log_snr_step, move, noise_kept
from jax_ddpm.samplers.multistep import History, no_history, order_of_step, phi

Correction = Literal["midpoint", "heun"]
Curvature = Literal["published", "exact"]
SHORT_GRID = 15  # below so many steps the last ones are of lower order (code of Lu et al.)


class Weights(NamedTuple):
    """How the differences of predictions are weighed, and whether noise is added."""

    correction: Correction = "midpoint"
    curvature: Curvature = "published"
    sde: bool = False


def dpmpp_2m(*, correction: Correction = "midpoint", num_steps: int | None = None) -> Sampler:
    """DPM-Solver++(2M): x_0 extrapolated from this and the last step (Lu et al., algorithm 2).

    `correction` weighs the difference of the two by 1/2 ("midpoint"), or by its exact integral
    ("heun"). With `num_steps`, below 15 of them, the last step is of first order even where it does
    not end at the clean image.
    """
    weights = Weights(correction)
    return Sampler(lambda x_T: SamplerState(x_T, no_history(x_T, 1)), _step(2, weights, num_steps))


def dpmpp_3m(*, curvature: Curvature = "published", num_steps: int | None = None) -> Sampler:
    """DPM-Solver++(3M): x_0 extrapolated from three steps (code of Lu et al.).

    All published codes take half of the curvature that the third order needs, so that the error
    falls as with the second order; "exact" takes the whole of it. With `num_steps`, below 15 of
    them, the last two steps are of second and of first order.
    """
    weights = Weights(curvature=curvature)
    return Sampler(lambda x_T: SamplerState(x_T, no_history(x_T, 2)), _step(3, weights, num_steps))


def dpmpp_2m_sde(*, correction: Correction = "midpoint", num_steps: int | None = None) -> Sampler:
    """SDE-DPM-Solver++(2M): the same with fresh noise in each step (Lu et al., appendix D)."""
    weights = Weights(correction, sde=True)
    return Sampler(lambda x_T: SamplerState(x_T, no_history(x_T, 1)), _step(2, weights, num_steps))


def _step(highest: int, weights: Weights, num_steps: int | None) -> StepFn:
    if num_steps is not None and num_steps >= SHORT_GRID:
        num_steps = None

    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        history: History = state.memory
        prediction = denoise_fn(state.x_t, cur)
        order = order_of_step(highest, history.num_done, nxt, num_steps)
        x_0 = extrapolated(prediction.x_0, history, log_snr_step(cur, nxt), order, weights)
        if weights.sde:
            kept = noise_kept(cur, nxt)
            x_t = (nxt.sigma / cur.sigma) * kept * state.x_t
            x_t += (1 - kept) * (1 + kept) * nxt.signal * x_0
            x_t += nxt.sigma * jnp.sqrt((1 - kept) * (1 + kept)) * noise
        else:
            x_t = move(state.x_t, x_0, cur, nxt)
        return SamplerState(x_t, history.after(prediction.x_0, cur, nxt)), prediction

    return step


def extrapolated(
    x_0: Images, history: History, h: Float[Array, ""], order: Int[Array, ""], weights: Weights
) -> Images:
    """The x_0 at which a first-order step of size h has the given order, 1 to 3.

    A polynomial in the log-SNR through the last predictions, integrated against exp(-h), or against
    exp(-2h) for the stochastic equation.
    """
    exponent = -2 * h if weights.sde else -h
    exact = phi(2, exponent) / phi(1, exponent)
    slope = h / history.hs[0] * (x_0 - history.x_0s[0])
    second = x_0 + (0.5 if weights.correction == "midpoint" else exact) * slope
    found = jnp.where(order >= 2, second, x_0)
    if len(history.hs) == 1:
        return found
    r_0, r_1 = history.hs[0] / h, history.hs[1] / h
    change = slope - h / history.hs[1] * (history.x_0s[0] - history.x_0s[1])
    slope, bend = slope + r_0 / (r_0 + r_1) * change, change / (r_0 + r_1)
    bend *= 2 if weights.curvature == "exact" else 1
    third = x_0 + exact * slope + phi(3, exponent) / phi(1, exponent) * bend
    return jnp.where(order == 3, third, found)
