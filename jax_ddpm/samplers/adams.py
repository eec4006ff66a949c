"""Adams-Bashforth methods for eps whose weights fit the grid: LMS and DEIS.

In the variables x = x_t / signal and s = sigma / signal the equation is dx / ds = eps. Both methods
integrate a polynomial through the last eps exactly: LMS a polynomial in s, DEIS one in log s.
"""

import jax.numpy as jnp

from jax_ddpm.errors import require
from jax_ddpm.process.levels import Level
from jax_ddpm.process.predictions import eps_from_x_0
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import (
    ANY_SIGMA,
    Sampler,
    SamplerState,
    broadcast_levels,
    guard_signal,
    is_far,
    log_snr_step,
    move,
    to_s,
)
from jax_ddpm.samplers.multistep import (
    History,
    choose_order,
    empty_history,
    integrate_changes,
    integrate_power,
    measure_places,
    short_grid,
)


def lms(*, order: int = 4) -> Sampler:
    """Linear multistep (k-diffusion): the polynomial in s through the last `order` eps.

    The first steps have the orders 1, 2, ..., as far as there are earlier eps.
    """
    require(order in (1, 2, 3, 4), "order", order, "1, 2, 3 or 4")

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        history: History = state.memory
        prediction = denoise_fn(state.x_t, cur)
        eps = eps_from_x_0(cur, state.x_t, prediction.x_0)
        far = is_far(cur, ANY_SIGMA)
        h = jnp.where(far, 1, to_s(nxt) - to_s(guard_signal(cur, far)))
        moments = [nxt.signal * h ** (j + 1) / (j + 1) for j in range(order)]
        now = jnp.where(far, 1, jnp.minimum(order, history.num_done + 1))
        x_t = move(state.x_t, prediction.x_0, cur, nxt)
        x_t += integrate_changes((eps, *history.values), measure_places(history.hs), moments, now)
        later = history.append(eps, h)
        later = later._replace(num_done=history.num_done + jnp.any(~far).astype(jnp.int32))
        return SamplerState(x_t, later), prediction

    return Sampler(lambda x_T: SamplerState(x_T, empty_history(x_T, max(order - 1, 1))), step)


def deis(*, order: int = 3, num_steps: int | None = None) -> Sampler:
    """DEIS, rho-AB in log-SNR: the polynomial in log s through the last eps (Zhang & Chen 2022).

    It is written with h, the step in log-SNR: the integral of eps over s, times nxt.signal, is
    -nxt.sigma times the integral of exp(h - u) eps(u) over u from 0 to h. With `num_steps` below
    15, the last two steps are of second and first order.
    """
    require(order in (2, 3), "order", order, "2 or 3")

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        history: History = state.memory
        prediction = denoise_fn(state.x_t, cur)
        eps = eps_from_x_0(cur, state.x_t, prediction.x_0)
        h = log_snr_step(cur, nxt)
        moments = [-nxt.sigma * integrate_power(j, h, 1) for j in range(order)]
        now = choose_order(order, history.num_done, nxt, short_grid(num_steps))
        x_t = move(state.x_t, prediction.x_0, cur, nxt)
        x_t += integrate_changes((eps, *history.values), measure_places(history.hs), moments, now)
        return SamplerState(x_t, history.append(eps, h)), prediction

    return Sampler(lambda x_T: SamplerState(x_T, empty_history(x_T, order - 1)), step)
