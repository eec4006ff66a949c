"""UniPC: each prediction also corrects the step that led to it (Zhao et al. 2023)."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_ddpm.errors import require
from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import (
    PerImage,
    Sampler,
    SamplerState,
    broadcast_levels,
    log_snr_step,
    move,
)
from jax_ddpm.samplers.multistep import History, choose_order, empty_history, measure_places, phi


class LastStep(NamedTuple):
    """Where the last step began, its order, and the predictions until then."""

    x_t: Images
    signal: Float[Array, "b 1 1 1"]
    sigma: Float[Array, "b 1 1 1"]
    order: Int[Array, "b 1 1 1"]
    history: History


def unipc(*, order: int = 2, num_steps: int | None = None) -> Sampler:
    """UniPC with B(h) = exp(h) - 1, predicting x_0 (Zhao et al. 2023, algorithms 5 and 6, "bh2").

    One evaluation per step: the prediction at x_t first corrects x_t, then leads on from the
    corrected one. With `num_steps`, a step's order is at most the number of steps that are left.
    """
    require(order in (2, 3), "order", order, "2 or 3")

    def init(x_T: Images) -> SamplerState:
        ones = jnp.ones((len(x_T), 1, 1, 1), x_T.dtype)
        no_order = jnp.zeros(ones.shape, jnp.int32)
        return SamplerState(x_T, LastStep(x_T, ones, ones, no_order, empty_history(x_T, order)))

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        last: LastStep = state.memory
        history = last.history
        prediction = denoise_fn(state.x_t, cur)
        before = Level(cur.t, last.signal, last.sigma)
        corrected = correct_x_0(prediction.x_0, history, last.order)
        x_t = jnp.where(history.num_done > 0, move(last.x_t, corrected, before, cur), state.x_t)
        now = choose_order(order, history.num_done, nxt, num_steps)
        h = log_snr_step(cur, nxt)
        predicted = predict_x_0(prediction.x_0, history, h, now)
        signal, sigma, now = (jnp.broadcast_to(a, last.order.shape) for a in (*cur[1:], now))
        memory = LastStep(x_t, signal, sigma, now, history.append(prediction.x_0, h))
        return SamplerState(move(x_t, predicted, cur, nxt), memory), prediction

    return Sampler(init=init, step=step)


def predict_x_0(x_0: Images, history: History, h: PerImage, order: Int[Array, "..."]) -> Images:
    """The x_0 of the next step, of size h, from the one at its start and order - 1 earlier ones."""
    places = [place / h for place in measure_places(history.hs[:-1])]
    others = history.values
    mixtures = [x_0 + mix_changes(x_0, others, places[:n], h) for n in range(len(places) + 1)]
    return select_by_order(order, mixtures, x_0)


def correct_x_0(x_0: Images, history: History, order: Int[Array, "..."]) -> Images:
    """The x_0 of the last step again, now that the prediction `x_0` at its end is known."""
    start, h = history.values[0], history.hs[0]
    places = [jnp.ones_like(h), *(place / h for place in measure_places(history.hs[1:]))]
    others = (x_0, *history.values[1:])
    counts = range(1, len(places) + 1)
    mixtures = [start + mix_changes(start, others, places[:n], h) for n in counts]
    return select_by_order(order, mixtures, start)


def select_by_order(
    order: Int[Array, "..."], mixtures: Sequence[Images], otherwise: Images
) -> Images:
    """mixtures[order - 1], image by image; `otherwise` where there is none."""
    for n, mixture in enumerate(mixtures, start=1):
        otherwise = jnp.where(order == n, mixture, otherwise)
    return otherwise


def mix_changes(
    start: Images, others: Sequence[Images], places: Sequence[PerImage], h: PerImage
) -> Images:
    """Sum of rho_m (x_m - start) / r_m over predictions x_m at places r_m, in units of h (Eq. 9).

    The rho solve sum of rho_m r_m^(k-1) = k! phi_{k+1}(-h) / phi_1(-h), k = 1, 2, ...; a single one
    is 1/2, as in the authors' code.
    """
    if not places:
        return jnp.zeros_like(start)
    if len(places) == 1:
        return (others[0] - start) / (2 * places[0])
    shape = jnp.broadcast_shapes(*(jnp.shape(place) for place in places), jnp.shape(h))
    r = jnp.stack([jnp.broadcast_to(place, shape) for place in places], axis=-1)
    powers = jnp.stack([r**k for k in range(len(places))], axis=-2)  # [..., k, m]
    factorials = (1, 2, 6)[: len(places)]
    sums = [f * phi(k + 2, -h) / phi(1, -h) for k, f in enumerate(factorials)]
    wanted = jnp.stack([jnp.broadcast_to(total, shape) for total in sums], axis=-1)
    rhos = jnp.linalg.solve(powers, wanted[..., None])[..., 0]
    terms = zip(jnp.moveaxis(rhos, -1, 0), others, places, strict=False)
    return sum(
        (rho * (x_0 - start) / place for rho, x_0, place in terms), start=jnp.zeros_like(start)
    )
