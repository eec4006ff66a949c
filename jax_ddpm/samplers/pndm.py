"""Pseudo numerical methods: linear multistep of eps, after a warm-up or none (Liu et al. 2022)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num

from jax_ddpm.process.grids import LARGE_SIGMA
from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import (
    ANY_SIGMA,
    LevelFn,
    Sampler,
    SamplerState,
    broadcast_levels,
    expand_level,
    guard_signal,
    is_far,
)

# Adams-Bashforth weights of the last one to four eps, newest first (Liu et al. 2022, Eq. 12)
WEIGHTS = (
    (1, 0, 0, 0),
    (3 / 2, -1 / 2, 0, 0),
    (23 / 12, -16 / 12, 5 / 12, 0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
RUNGE_KUTTA_STEPS = 3

EpsFn = Callable[[Images, Images, Level, Level, DenoiseFn], Images]


class LastEps(NamedTuple):
    """How many steps are done, and the eps of the last three, newest first."""

    num_done: Int[Array, ""]
    eps: tuple[Images, Images, Images]


def plms(*, most_sigma: float = LARGE_SIGMA) -> Sampler:
    """Pseudo linear multistep (Liu et al. 2022, Eq. 12), warmed up by one pseudo Heun step.

    As in latent diffusion's code: two evaluations in the first step, one in each other; the second
    and third are of lower order. The weights are those of equal steps in t. Steps from
    sigma / signal above `most_sigma` are of first order, with one evaluation.
    """
    return make_multistep(1, average_ends, most_sigma=most_sigma)


def pndm(*, level_of_t: LevelFn, most_sigma: float = LARGE_SIGMA) -> Sampler:
    """F-PNDM: linear multistep after three pseudo Runge-Kutta steps (Liu et al., Eqs. 12, 13).

    Four evaluations in each of the first three steps, one in each other. `level_of_t(t)` gives the
    level in the middle of a step (see levels.py). The weights are those of equal steps in t. Steps
    from sigma / signal above `most_sigma` are of first order, with one evaluation.
    """

    def average_runge_kutta(
        x_t: Images, eps: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> Images:
        mid = expand_level(level_of_t(find_middle(cur.t, nxt.t)), x_t)
        eps_2 = denoise_fn(transfer(x_t, eps, cur, mid), mid).eps
        eps_3 = denoise_fn(transfer(x_t, eps_2, cur, mid), mid).eps
        eps_4 = denoise_fn(transfer(x_t, eps_3, cur, nxt), nxt).eps
        return (eps + 2 * eps_2 + 2 * eps_3 + eps_4) / 6

    return make_multistep(RUNGE_KUTTA_STEPS, average_runge_kutta, most_sigma=most_sigma)


def ipndm() -> Sampler:
    """Linear multistep of eps (Liu et al. 2022, Eq. 12) without a warm-up: i-PNDM.

    One evaluation per step; the first three steps use one, two and three eps (Zhang & Chen 2022).
    The weights are those of equal steps in t.
    """
    return make_multistep()


def average_ends(x_t: Images, eps: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn) -> Images:
    """The mean of eps at both ends of a step."""
    return (eps + denoise_fn(transfer(x_t, eps, cur, nxt), nxt).eps) / 2


def make_multistep(
    num_warmup: int = 0, warmup: EpsFn | None = None, *, most_sigma: float = ANY_SIGMA
) -> Sampler:
    """Linear multistep of eps, after `num_warmup` steps whose eps is that of `warmup`.

    Steps from sigma / signal above `most_sigma` come before: they are of first order, and their eps
    is not remembered.
    """

    def choose_eps(
        state: SamplerState,
        eps: Images,
        ahead: Images,
        cur: Level,
        nxt: Level,
        fn: DenoiseFn,
        far: Bool[Array, "..."],
    ) -> Images:
        if warmup is None:
            return ahead
        # The clean image has no eps: a step that ends there is never part of the warm-up. `cond`,
        # not `where`, so that later steps save the evaluations of the warm-up.
        warms_up = (state.memory.num_done < num_warmup) & (nxt.sigma > 0) & ~far
        found = jax.lax.cond(
            jnp.any(warms_up), lambda: warmup(state.x_t, eps, cur, nxt, fn), lambda: ahead
        )
        return jnp.where(warms_up, found, ahead)

    def init(x_T: Images) -> SamplerState:
        return SamplerState(x_T, LastEps(jnp.zeros((), jnp.int32), (jnp.zeros_like(x_T),) * 3))

    @broadcast_levels
    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        memory: LastEps = state.memory
        far = is_far(cur, most_sigma)
        safe = guard_signal(cur, far)
        prediction = denoise_fn(state.x_t, cur)
        latest = (prediction.eps, *memory.eps)
        ahead = extrapolate_eps(latest, memory.num_done)
        eps = choose_eps(state, prediction.eps, ahead, safe, nxt, denoise_fn, far)
        lead_in = nxt.signal * prediction.x_0 + nxt.sigma * prediction.eps
        x_t = jnp.where(far, lead_in, transfer(state.x_t, eps, safe, nxt))
        num_done = memory.num_done + jnp.any(~far).astype(jnp.int32)
        return SamplerState(x_t, LastEps(num_done, latest[:3])), prediction

    return Sampler(init=init, step=step)


def extrapolate_eps(latest: tuple[Images, ...], num_done: Int[Array, ""]) -> Images:
    """The eps of a step from the eps of this and up to three earlier steps."""
    weights = jnp.asarray(WEIGHTS, latest[0].dtype)[jnp.minimum(num_done, 3)]
    return sum((w * eps for w, eps in zip(weights, latest, strict=True)), jnp.zeros_like(latest[0]))


def transfer(x_t: Images, eps: Images, cur: Level, nxt: Level) -> Images:
    """The image at `nxt` if eps is the noise in x_t (Liu et al. 2022, Eq. 11)."""
    return nxt.signal * (x_t - cur.sigma * eps) / cur.signal + nxt.sigma * eps


def find_middle(t: Num[Array, "*n"], t_next: Num[Array, "*n"]) -> Num[Array, "*n"]:
    """The middle of a step; between integer timesteps, rounded up to the next integer."""
    whole = jnp.issubdtype(t.dtype, jnp.integer)
    return t - (t - t_next) // 2 if whole else (t + t_next) / 2
