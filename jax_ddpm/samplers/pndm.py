"""Pseudo numerical methods: linear multistep of eps, with two warm-ups (Liu et al. 2022)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Num

from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images, Prediction
from jax_ddpm.samplers.base import LevelFn, Sampler, SamplerState

# Adams-Bashforth weights of the last one to four eps, newest first (Liu et al. 2022, Eq. 12)
WEIGHTS = ((1, 0, 0, 0), (3 / 2, -1 / 2, 0, 0), (23 / 12, -16 / 12, 5 / 12, 0),
           (55 / 24, -59 / 24, 37 / 24, -9 / 24))  # fmt: skip
RUNGE_KUTTA_STEPS = 3

EpsFn = Callable[[Images, Images, Level, Level, DenoiseFn], Images]


class Memory(NamedTuple):
    """How many steps are done, and the eps of the last three, newest first."""

    num_done: Int[Array, ""]
    eps: tuple[Images, Images, Images]


def plms() -> Sampler:
    """Pseudo linear multistep (Liu et al. 2022, Eq. 12), warmed up by one pseudo Heun step.

    As in latent diffusion's code: two evaluations in the first step, one in each other; the second
    and third are of lower order. The weights are those of equal steps in t.
    """
    return _multistep(1, pseudo_heun)


def pndm(*, level_of_t: LevelFn) -> Sampler:
    """F-PNDM: linear multistep after three pseudo Runge-Kutta steps (Liu et al., Eqs. 12, 13).

    Four evaluations in each of the first three steps, in whose middle `level_of_t(t)` tells the
    level (grids.py), one in each other. The weights are those of equal steps in t.
    """

    def pseudo_runge_kutta(
        x_t: Images, eps: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> Images:
        mid = level_of_t(midway(cur.t, nxt.t))
        eps_2 = denoise_fn(transfer(x_t, eps, cur, mid), mid).eps
        eps_3 = denoise_fn(transfer(x_t, eps_2, cur, mid), mid).eps
        eps_4 = denoise_fn(transfer(x_t, eps_3, cur, nxt), nxt).eps
        return (eps + 2 * eps_2 + 2 * eps_3 + eps_4) / 6

    return _multistep(RUNGE_KUTTA_STEPS, pseudo_runge_kutta)


def pseudo_heun(x_t: Images, eps: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn) -> Images:
    """The mean of eps at both ends of a step."""
    return (eps + denoise_fn(transfer(x_t, eps, cur, nxt), nxt).eps) / 2


def _multistep(num_warmup: int, warmup: EpsFn) -> Sampler:
    def init(x_T: Images) -> SamplerState:
        return SamplerState(x_T, Memory(jnp.zeros((), jnp.int32), (jnp.zeros_like(x_T),) * 3))

    def step(
        state: SamplerState, noise: Images, cur: Level, nxt: Level, denoise_fn: DenoiseFn
    ) -> tuple[SamplerState, Prediction]:
        memory: Memory = state.memory
        prediction = denoise_fn(state.x_t, cur)
        latest = (prediction.eps, *memory.eps)
        # the clean image has no eps: a step that ends there is never one of the warm-up
        warms_up = (memory.num_done < num_warmup) & (nxt.sigma > 0)
        eps = jax.lax.cond(
            warms_up,
            lambda: warmup(state.x_t, prediction.eps, cur, nxt, denoise_fn),
            lambda: extrapolated(latest, memory.num_done),
        )
        x_t = transfer(state.x_t, eps, cur, nxt)
        return SamplerState(x_t, Memory(memory.num_done + 1, latest[:3])), prediction

    return Sampler(init=init, step=step)


def extrapolated(latest: tuple[Images, ...], num_done: Int[Array, ""]) -> Images:
    """The eps of a step from those of this and up to three earlier ones."""
    weights = jnp.asarray(WEIGHTS, latest[0].dtype)[jnp.minimum(num_done, 3)]
    return sum((w * eps for w, eps in zip(weights, latest, strict=True)), jnp.zeros_like(latest[0]))


def transfer(x_t: Images, eps: Images, cur: Level, nxt: Level) -> Images:
    """x at `nxt` if eps is the noise of x_t (Liu et al. 2022, Eq. 11)."""
    return nxt.signal * (x_t - cur.sigma * eps) / cur.signal + nxt.sigma * eps


def midway(t: Num[Array, ""], t_next: Num[Array, ""]) -> Num[Array, ""]:
    """The middle of a step; of whole timesteps the next whole one above it."""
    whole = jnp.issubdtype(t.dtype, jnp.integer)
    return t - (t - t_next) // 2 if whole else (t + t_next) / 2
