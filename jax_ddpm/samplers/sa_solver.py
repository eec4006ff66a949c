"""SA-Solver: stochastic Adams methods that predict and correct (Xue et al. 2023).

With tau the amount of noise and h the step in log-SNR, the exact step is

    exp(-tau^2 h) (sigma' / sigma) x_t + sigma' sqrt(1 - exp(-2 tau^2 h)) noise
    + (1 + tau^2) signal' times the integral of exp(-(1 + tau^2) (h - u)) x_0(u) over u from 0 to h,

where the solver puts a polynomial through predictions for x_0(u). tau = 0 is the ODE, and tau = 1
the SDE of ancestral sampling.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_ddpm.errors import require
from jax_ddpm.process.checks import check_range
from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import (
    PerImage,
    Sampler,
    SamplerState,
    broadcast_levels,
    log_snr_step,
    to_s,
)
from jax_ddpm.samplers.multistep import (
    History,
    choose_order,
    empty_history,
    integrate_changes,
    integrate_power,
    measure_places,
)


class LastStep(NamedTuple):
    """Where the last step began, its noise, and the predictions until then."""

    x_t: Images
    noise: Images
    signal: Float[Array, "b 1 1 1"]
    sigma: Float[Array, "b 1 1 1"]
    history: History


def sa_solver(
    *,
    predictor_order: int = 2,
    corrector_order: int = 2,
    tau: float = 1.0,
    tau_min: float = 0.0,
    tau_max: float = float("inf"),
    num_steps: int | None = None,
) -> Sampler:
    """Stochastic Adams-Bashforth, corrected by Adams-Moulton (Xue et al. 2023, algorithm 1).

    One evaluation per step: the prediction at x_t first corrects x_t, then leads on from the
    corrected one. Steps are noisy that start at tau_min <= s <= tau_max, with s = sigma / signal.
    With `num_steps`, a step's order is at most the number of steps that are left.
    """
    require(predictor_order in (1, 2, 3), "predictor_order", predictor_order, "1, 2 or 3")
    require(corrector_order in (2, 3), "corrector_order", corrector_order, "2 or 3")
    check_range("tau", tau, 0)
    length = max(predictor_order, corrector_order) - 1

    def init(x_T: Images) -> SamplerState:
        ones = jnp.ones((len(x_T), 1, 1, 1), x_T.dtype)
        history = empty_history(x_T, length)
        return SamplerState(x_T, LastStep(x_T, jnp.zeros_like(x_T), ones, ones, history))

    def choose_tau(level: Level) -> PerImage:
        s = to_s(level)
        return jnp.where((tau_min <= s) & (s <= tau_max), tau, 0.0).astype(s.dtype)

    def correct(x_t: Images, x_0: Images, cur: Level, last: LastStep) -> Images:
        """x_t again, now that x_0 at the end of the last step is known."""
        start, history = Level(cur.t, last.signal, last.sigma), last.history
        values = (history.values[0], x_0, *history.values[1:])
        places = [history.hs[0], *measure_places(history.hs[1:])]
        order = jnp.minimum(corrector_order, history.num_done + 1)
        corrected = step_to(
            last.x_t, values, places, order, last.noise, choose_tau(start), start, cur
        )
        return jnp.where(history.num_done > 0, corrected, x_t)

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        last: LastStep = state.memory
        history = last.history
        prediction = denoise_fn(state.x_t, cur)
        x_t = correct(state.x_t, prediction.x_0, cur, last)
        values = (prediction.x_0, *history.values)
        order = choose_order(predictor_order, history.num_done, nxt, num_steps)
        x_next = step_to(
            x_t, values, measure_places(history.hs), order, noise, choose_tau(cur), cur, nxt
        )
        signal, sigma = (jnp.broadcast_to(a, last.signal.shape) for a in cur[1:])
        history = history.append(prediction.x_0, log_snr_step(cur, nxt))
        return SamplerState(x_next, LastStep(x_t, noise, signal, sigma, history)), prediction

    return Sampler(init=init, step=step)


def step_to(
    x_t: Images,
    x_0s: tuple[Images, ...],
    places: list[PerImage],
    order: Int[Array, "..."],
    noise: Images,
    tau: PerImage,
    cur: Level,
    nxt: Level,
) -> Images:
    """The image at `nxt`, with the polynomial through the first `order` of `x_0s` at `places`.

    For second order the authors' code takes h^2 / 2 as the integral of u, which they found to draw
    slightly better images. It has no limit for a step from pure noise, which is integrated exactly.
    """
    h, rate = log_snr_step(cur, nxt), 1 + tau**2
    integrals = [integrate_power(j, h, -rate) for j in range(len(x_0s))]
    published = (order == 2) & (cur.signal > 0)
    integrals[1] = jnp.where(published, h**2 / 2, integrals[1])
    moments = [rate * nxt.signal * integral for integral in integrals]
    x = jnp.exp(-(tau**2) * h) * (nxt.sigma / cur.sigma) * x_t
    x += moments[0] * x_0s[0] + integrate_changes(x_0s, places, moments, order)
    return x + nxt.sigma * jnp.sqrt(-jnp.expm1(-2 * tau**2 * h)) * noise
