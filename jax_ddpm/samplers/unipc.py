"""UniPC: each prediction also corrects the step that led to it (Zhao et al. 2023)."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import Sampler, SamplerState, log_snr_step, move
from jax_ddpm.samplers.multistep import History, no_history, order_of_step, phi


class Memory(NamedTuple):
    """The last step: where it began, its order, and what was predicted until then."""

    x_t: Images
    signal: Float[Array, ""]
    sigma: Float[Array, ""]
    order: Int[Array, ""]
    history: History


def unipc(*, order: Literal[2, 3] = 2, num_steps: int | None = None) -> Sampler:
    """UniPC with B(h) = exp(h) - 1, predicting x_0 (Zhao et al. 2023, algorithms 5 and 6, "bh2").

    One evaluation per step: the prediction at x_t first corrects x_t, then leads on from the
    corrected one. With `num_steps` a step's order is at most the number of steps that are left.
    """

    def init(x_T: Images) -> SamplerState:
        one = jnp.ones((), x_T.dtype)
        none = jnp.zeros((), jnp.int32)
        return SamplerState(x_T, Memory(x_T, one, one, none, no_history(x_T, order)))

    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        last: Memory = state.memory
        history = last.history
        prediction = denoise_fn(state.x_t, cur)
        before = Level(cur.t, last.signal, last.sigma)
        mixed = corrector_x_0(prediction.x_0, history, last.order)
        repaired = move(last.x_t, mixed, before, cur)
        x_t = jnp.where(history.num_done > 0, repaired, state.x_t)
        now = order_of_step(order, history.num_done, nxt, num_steps)
        mixed = predictor_x_0(prediction.x_0, history, log_snr_step(cur, nxt), now)
        after = history.after(prediction.x_0, cur, nxt)
        memory = Memory(x_t, cur.signal, cur.sigma, now, after)
        return SamplerState(move(x_t, mixed, cur, nxt), memory), prediction

    return Sampler(init=init, step=step)


def predictor_x_0(
    x_0: Images, history: History, h: Float[Array, ""], order: Int[Array, ""]
) -> Images:
    """The x_0 of the next step, of size h, from that at its start and order - 1 earlier ones."""
    places, behind = list[Float[Array, ""]](), jnp.zeros_like(h)
    for earlier in history.hs[:-1]:
        behind += earlier
        places.append(-behind / h)
    others = history.x_0s[: len(places)]
    mixtures = [x_0] + [
        x_0 + mixture(x_0, others[:n], places[:n], h) for n in range(1, len(places) + 1)
    ]
    return jnp.select([order == n + 1 for n in range(len(mixtures))], mixtures, x_0)


def corrector_x_0(x_0: Images, history: History, order: Int[Array, ""]) -> Images:
    """The x_0 of the last step again, now that the prediction `x_0` at its end is known."""
    start, h = history.x_0s[0], history.hs[0]
    places, behind = [jnp.ones_like(h)], jnp.zeros_like(h)
    for earlier in history.hs[1:]:
        behind += earlier
        places.append(-behind / h)
    others = (x_0, *history.x_0s[1:])
    mixtures = [
        start + mixture(start, others[:n], places[:n], h) for n in range(1, len(places) + 1)
    ]
    return jnp.select([order == n + 1 for n in range(len(mixtures))], mixtures, start)


def mixture(
    start: Images,
    others: Sequence[Images],
    places: Sequence[Float[Array, ""]],
    h: Float[Array, ""],
) -> Images:
    """Sum of rho_m (x_m - start) / r_m over predictions x_m at places r_m, in units of h (Eq. 9).

    The rho solve sum of rho_m r_m^(k-1) = k! phi_{k+1}(-h) / phi_1(-h), k = 1, 2, ...; a single one
    is 1/2, as in the authors' code.
    """
    if len(places) == 1:
        return (others[0] - start) / (2 * places[0])
    powers = jnp.stack([jnp.stack(places) ** k for k in range(len(places))])
    factorials = [1, 2, 6][: len(places)]
    wanted = [f * phi(k + 2, -h) / phi(1, -h) for k, f in enumerate(factorials)]
    rhos = jnp.linalg.solve(powers, jnp.stack(wanted))
    terms = [
        rho * (x_0 - start) / place for rho, x_0, place in zip(rhos, others, places, strict=True)
    ]
    return sum(terms, start=jnp.zeros_like(start))
