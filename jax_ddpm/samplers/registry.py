"""The samplers by name: what the command line offers and the conformance tests run over."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from jax_ddpm.process.diffusion import Variance
from jax_ddpm.process.grids import GridName
from jax_ddpm.process.types import GradientFn
from jax_ddpm.samplers.adams import deis, lms
from jax_ddpm.samplers.base import LevelFn, Sampler
from jax_ddpm.samplers.ddim import ddim
from jax_ddpm.samplers.ddpm import ddpm
from jax_ddpm.samplers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, dpmpp_3m
from jax_ddpm.samplers.dpmpp_sde import dpmpp_sde
from jax_ddpm.samplers.euler import euler, euler_ancestral
from jax_ddpm.samplers.heun import heun
from jax_ddpm.samplers.kdpm2 import kdpm2, kdpm2_ancestral
from jax_ddpm.samplers.pndm import ipndm, plms, pndm
from jax_ddpm.samplers.sa_solver import sa_solver
from jax_ddpm.samplers.unipc import unipc


class Options(NamedTuple):
    """What samplers are built from: the length of the grid, level functions, and settings."""

    num_steps: int
    level_of_t: LevelFn
    level_of_sigma: LevelFn
    variance: Variance = "fixed_large"
    eta: float = 0.0
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = float("inf")
    churn_noise: float = 1.0
    gradient_fn: GradientFn | None = None


class Claims(NamedTuple):
    """What a sampler claims of its accuracy; tests/samplers/test_conformance.py tests it.

    The error falls at least like S^-`order` in the number of steps S: the error of every image, or
    for a `stochastic` sampler the error of the distribution. `steps` says which steps: equal ones
    in log-SNR or in t.
    """

    order: int
    stochastic: bool = False
    steps: Literal["log_snr", "t"] = "log_snr"


CHURN = ("churn", "churn_min", "churn_max", "churn_noise")  # settings


class Entry(NamedTuple):
    """How a sampler is built, what it claims, and what the command line must know of it.

    `evaluations(S)` is the most network evaluations in S steps; a first step from near pure noise
    may take only one. `spacing` is the default grid; None: the run's own. `guides_mean` says
    whether a classifier's gradient goes into `Options.gradient_fn`; `looks_between`, whether steps
    have levels inside them that lie between two timesteps; `counts_steps`, whether the sampler
    itself depends on their number. `uses` names the settings of `SampleConfig` that not all
    samplers have.
    """

    make: Callable[[Options], Sampler]
    claims: Claims
    evaluations: Callable[[int], int] = lambda num_steps: num_steps
    spacing: GridName | None = "trailing"
    guides_mean: bool = False
    looks_between: bool = False
    counts_steps: bool = False
    uses: tuple[str, ...] = ()


def look_twice(num_steps: int) -> int:
    """Two evaluations per step, one in the step to the clean image."""
    return 2 * num_steps - 1


def make_heun(options: Options) -> Sampler:
    """`heun` with the options' churn."""
    if options.churn == 0:
        return heun()
    return heun(
        churn=options.churn,
        churn_min=options.churn_min,
        churn_max=options.churn_max,
        churn_noise=options.churn_noise,
        num_steps=options.num_steps,
        level_of_sigma=options.level_of_sigma,
    )


SAMPLERS: dict[str, Entry] = {
    "ddpm": Entry(
        lambda options: ddpm(options.variance, options.gradient_fn),
        Claims(order=1, stochastic=True),
        spacing=None,
        guides_mean=True,
        uses=("variance",),
    ),
    "ddim": Entry(
        lambda options: ddim(options.eta),
        Claims(order=1),
        spacing=None,
        uses=("eta", "rederive_eps"),
    ),
    "euler": Entry(lambda options: euler(), Claims(order=1)),
    "euler_ancestral": Entry(lambda options: euler_ancestral(), Claims(order=1, stochastic=True)),
    "heun": Entry(
        make_heun,
        Claims(order=2),
        evaluations=look_twice,
        spacing="karras_trailing",
        uses=CHURN,
    ),
    "dpmpp_2s": Entry(lambda options: dpmpp_2s(), Claims(order=2)),
    "dpmpp_2m": Entry(
        lambda options: dpmpp_2m(num_steps=options.num_steps), Claims(order=2), counts_steps=True
    ),
    "dpmpp_3m": Entry(
        lambda options: dpmpp_3m(num_steps=options.num_steps), Claims(order=2), counts_steps=True
    ),
    "dpmpp_2m_sde": Entry(
        lambda options: dpmpp_2m_sde(num_steps=options.num_steps),
        Claims(order=1, stochastic=True),
        counts_steps=True,
    ),
    "unipc": Entry(
        lambda options: unipc(num_steps=options.num_steps), Claims(order=3), counts_steps=True
    ),
    "plms": Entry(
        lambda options: plms(),
        Claims(order=2, steps="t"),
        # the step to the clean image is never part of the warm-up
        evaluations=lambda num_steps: num_steps + min(num_steps - 1, 1),
        spacing="karras_trailing",
        uses=("rederive_eps",),
    ),
    "pndm": Entry(
        lambda options: pndm(level_of_t=options.level_of_t),
        Claims(order=2, steps="t"),
        evaluations=lambda num_steps: num_steps + 3 * min(num_steps - 1, 3),
        spacing="karras_trailing",
        uses=("rederive_eps",),
    ),
    "ipndm": Entry(
        lambda options: ipndm(),
        Claims(order=2, steps="t"),
        spacing="karras_trailing",
        uses=("rederive_eps",),
    ),
    "lms": Entry(lambda options: lms(), Claims(order=2), spacing="karras_trailing"),
    "deis": Entry(
        lambda options: deis(num_steps=options.num_steps), Claims(order=2), counts_steps=True
    ),
    "kdpm2": Entry(
        lambda options: kdpm2(level_of_sigma=options.level_of_sigma),
        Claims(order=2),
        evaluations=look_twice,
        spacing="karras_trailing",
        looks_between=True,
    ),
    "kdpm2_ancestral": Entry(
        lambda options: kdpm2_ancestral(level_of_sigma=options.level_of_sigma),
        Claims(order=2, stochastic=True),
        evaluations=look_twice,
        spacing="karras_trailing",
        looks_between=True,
    ),
    "dpmpp_sde": Entry(
        lambda options: dpmpp_sde(level_of_sigma=options.level_of_sigma),
        Claims(order=1, stochastic=True),
        evaluations=look_twice,
        spacing="karras_trailing",
        looks_between=True,
    ),
    "sa_solver": Entry(
        lambda options: sa_solver(num_steps=options.num_steps),
        Claims(order=2, stochastic=True),
        counts_steps=True,
    ),
}

if TYPE_CHECKING:
    SamplerName = str
else:
    SamplerName = Literal[tuple(SAMPLERS)]
