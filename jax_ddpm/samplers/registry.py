"""The samplers by name: what the command line offers and the conformance tests run over."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from jax_ddpm.process.diffusion import Variance
from jax_ddpm.process.grids import Spacing
from jax_ddpm.process.types import GradientFn
from jax_ddpm.samplers.base import LevelFn, Sampler
from jax_ddpm.samplers.ddim import ddim
from jax_ddpm.samplers.ddpm import ddpm
from jax_ddpm.samplers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m
from jax_ddpm.samplers.dpmpp_2s import dpmpp_2s
from jax_ddpm.samplers.euler import euler, euler_ancestral
from jax_ddpm.samplers.heun import heun
from jax_ddpm.samplers.pndm import plms, pndm
from jax_ddpm.samplers.unipc import unipc


class Options(NamedTuple):
    """What samplers are built from: the grid's length, the levels, and each one's settings."""

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


class Entry(NamedTuple):
    """How a sampler is built, and what is claimed of it.

    Its error falls at least like S^-order in the number of steps S: for a stochastic sampler that
    of the distribution, for others that of every image. `steps` tells which steps are meant: equal
    ones in log-SNR or in t. `starts_at_noise`: whether the first level may have signal 0.
    `evaluations(S)`: how often the network is evaluated in S steps. `spacing`: the grid it takes
    where none is asked for; None: that of the run. (Those that divide by the signal begin with
    leading timesteps, where some is left.)
    """

    make: Callable[[Options], Sampler]
    order: int
    stochastic: bool = False
    steps: Literal["log_snr", "t"] = "log_snr"
    starts_at_noise: bool = True
    evaluations: Callable[[int], int] = lambda num_steps: num_steps
    spacing: Spacing | None = None
    guides_mean: bool = False


def _heun(options: Options) -> Sampler:
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
        order=1,
        stochastic=True,
        guides_mean=True,
    ),
    "ddim": Entry(lambda options: ddim(options.eta), order=1),
    "euler": Entry(lambda options: euler(), order=1, spacing="trailing"),
    "euler_ancestral": Entry(
        lambda options: euler_ancestral(), order=1, stochastic=True, spacing="trailing"
    ),
    "heun": Entry(
        _heun,
        order=2,
        starts_at_noise=False,
        evaluations=lambda num_steps: 2 * num_steps - 1,
        spacing="leading",
    ),
    "dpmpp_2s": Entry(lambda options: dpmpp_2s(), order=2, spacing="trailing"),
    "dpmpp_2m": Entry(
        lambda options: dpmpp_2m(num_steps=options.num_steps), order=2, spacing="trailing"
    ),
    "dpmpp_3m": Entry(
        lambda options: dpmpp_3m(num_steps=options.num_steps), order=2, spacing="trailing"
    ),
    "dpmpp_2m_sde": Entry(
        lambda options: dpmpp_2m_sde(num_steps=options.num_steps),
        order=1,
        stochastic=True,
        spacing="trailing",
    ),
    "unipc": Entry(lambda options: unipc(num_steps=options.num_steps), order=3, spacing="trailing"),
    "plms": Entry(
        lambda options: plms(),
        order=2,
        steps="t",
        starts_at_noise=False,
        # the step to the clean image is no part of a warm-up
        evaluations=lambda num_steps: num_steps + min(num_steps - 1, 1),
        spacing="leading",
    ),
    "pndm": Entry(
        lambda options: pndm(level_of_t=options.level_of_t),
        order=2,
        steps="t",
        starts_at_noise=False,
        evaluations=lambda num_steps: num_steps + 3 * min(num_steps - 1, 3),
        spacing="leading",
    ),
}

if TYPE_CHECKING:
    SamplerName = str
else:
    SamplerName = Literal[tuple(SAMPLERS)]
