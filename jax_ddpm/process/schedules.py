"""Noise schedules: betas in NumPy float64, and every table derived from them."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jax_ddpm.errors import UserError, check_choice, join_or

Betas = Float[np.ndarray, " T"]


def linear_betas(
    num_timesteps: int, *, start: float = 1e-4, end: float = 0.02, rescale: bool = False
) -> Betas:
    """Betas that grow linearly from `start` to `end` (Ho et al. 2020, section 4).

    `rescale` multiplies both ends by 1000/T, so that a short chain also ends in noise
    (Nichol & Dhariwal 2021). With the default ends that needs T > 20: at T = 20 the last beta is 1.

    Examples:
        >>> import jax_ddpm as jd
        >>> betas = jd.linear_betas(1000)  # float64, for `make_schedule`
        >>> float(betas[0]), float(betas[-1])
        (0.0001, 0.02)
    """
    if rescale and 1000 / num_timesteps * end >= 1:
        raise UserError(
            f"the rescaled linear schedule needs more than {1000 * end:g} timesteps, "
            f"got {num_timesteps}"
        )
    scale = 1000 / num_timesteps if rescale else 1.0
    return np.linspace(scale * start, scale * end, num_timesteps, dtype=np.float64)


def quadratic_betas(num_timesteps: int, *, start: float = 1e-4, end: float = 0.02) -> Betas:
    """Betas whose square roots grow linearly ("quad" in the code of Ho et al. 2020)."""
    return np.linspace(start**0.5, end**0.5, num_timesteps, dtype=np.float64) ** 2


def quadratic_slip_betas(num_timesteps: int, *, start: float = 1e-4, end: float = 0.02) -> Betas:
    """Squares of numbers between the squared ends: a slip of the first Annotated Diffusion Model.

    Its authors meant square roots, as in `quadratic_betas`. The last beta is 1.6e-7, so that hardly
    any noise is added.
    """
    return np.linspace(start**2, end**2, num_timesteps, dtype=np.float64) ** 2


def sigmoid_betas(num_timesteps: int, *, start: float = 1e-4, end: float = 0.02) -> Betas:
    """Betas on a logistic curve from `start` to `end`; its argument runs from -6 to 6."""
    return (end - start) * _sigmoid(np.linspace(-6.0, 6.0, num_timesteps)) + start


def cosine_betas(
    num_timesteps: int, *, s: float = 0.008, clip: tuple[float, float] = (0.0, 0.999)
) -> Betas:
    """Betas of the squared-cosine alphas_cumprod (Nichol & Dhariwal 2021, Eq. 17).

    `clip` bounds each beta. The paper clips at 0.999; several tutorials clip to [1e-4, 0.9999].

    Examples:
        >>> import jax_ddpm as jd
        >>> float(jd.cosine_betas(1000).max())
        0.999
    """
    u = np.linspace(0.0, 1.0, num_timesteps + 1)
    return betas_from_alphas_cumprod(np.cos((u + s) / (1 + s) * np.pi / 2) ** 2, clip=clip)


def sigmoid_cumprod_betas(
    num_timesteps: int,
    *,
    start: float = -3.0,
    end: float = 3.0,
    tau: float = 1.0,
    clip: tuple[float, float] = (0.0, 0.999),
) -> Betas:
    """Betas of a logistic alphas_cumprod (Jabri et al. 2022, "sigmoid" schedule)."""
    u = np.linspace(0.0, 1.0, num_timesteps + 1)
    v_start, v_end = _sigmoid(np.float64(start / tau)), _sigmoid(np.float64(end / tau))
    f = (v_end - _sigmoid((u * (end - start) + start) / tau)) / (v_end - v_start)
    return betas_from_alphas_cumprod(f, clip=clip)


def constant_betas(num_timesteps: int, *, beta: float = 0.02) -> Betas:
    """The same beta at every timestep ("const" in the code of Ho et al. 2020)."""
    return np.full(num_timesteps, beta, np.float64)


def warmup_betas(
    num_timesteps: int, *, share: float, start: float = 1e-4, end: float = 0.02
) -> Betas:
    """Betas that grow linearly from `start` to `end` in the first `share` of the chain, then stay.

    "warmup10" and "warmup50" in the code of Ho et al. 2020 have the shares 0.1 and 0.5.
    """
    betas = constant_betas(num_timesteps, beta=end)
    warmup = int(num_timesteps * share)
    betas[:warmup] = np.linspace(start, end, warmup)
    return betas


def jsd_betas(num_timesteps: int) -> Betas:
    """1/T, 1/(T - 1), ..., 1/2, 1: alphas_cumprod falls linearly to 0 (Sohl-Dickstein et al. 2015).

    The chain ends in pure noise, so a network for it cannot predict eps.
    """
    return 1 / np.linspace(num_timesteps, 1, num_timesteps, dtype=np.float64)


def betas_from_alphas_cumprod(
    f: Float[np.ndarray, " num_points"], *, clip: tuple[float, float] = (0.0, 0.999)
) -> Float[np.ndarray, " num_points-1"]:
    """beta_t = 1 - f_{t+1} / f_t, clipped, for a decreasing curve f sampled at T + 1 points."""
    return np.clip(1 - f[1:] / f[:-1], *clip)


def rescale_zero_terminal_snr(betas: Betas) -> Betas:
    """Betas whose chain ends in pure noise: sqrt(alphas_cumprod) is shifted to 0 at its end.

    It is then scaled so that its first value, and with it the first beta, stays the same. The last
    beta becomes 1 (Lin et al. 2023, algorithm 1). Raises UserError for a chain of one timestep.
    """
    signal = np.sqrt(np.cumprod(1 - np.asarray(betas, np.float64)))
    if signal.size < 2:
        raise UserError("a schedule of one timestep cannot be rescaled to end in pure noise")
    signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    alphas_cumprod = signal**2
    return 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


BETAS: dict[str, Callable[..., Betas]] = {
    "linear": linear_betas,
    "linear_rescaled": partial(linear_betas, rescale=True),
    "quadratic": quadratic_betas,
    "sigmoid": sigmoid_betas,
    "sigmoid_cumprod": sigmoid_cumprod_betas,
    "cosine": cosine_betas,
    "cosine_clipped": partial(cosine_betas, clip=(1e-4, 0.9999)),
    # The EPITA practical's notebook; its web page clips like cosine_clipped.
    "cosine_epita": partial(cosine_betas, clip=(1e-4, 0.02)),
    "quadratic_slip": quadratic_slip_betas,
    "const": constant_betas,
    "warmup10": partial(warmup_betas, share=0.1),
    "warmup50": partial(warmup_betas, share=0.5),
    "jsd": jsd_betas,
}
# The numbers that a schedule can be given, and what its function calls them.
_ENDS, _COSINE = {"beta_start": "start", "beta_end": "end"}, {"cosine_s": "s"}
SCHEDULE_NUMBERS: dict[str, dict[str, str]] = {
    "linear": _ENDS,
    "linear_rescaled": _ENDS,
    "quadratic": _ENDS,
    "sigmoid": _ENDS,
    "cosine": _COSINE,
    "cosine_clipped": _COSINE,
    "cosine_epita": _COSINE,
    "quadratic_slip": _ENDS,
    "const": {"beta_end": "beta"},
    "warmup10": _ENDS,
    "warmup50": _ENDS,
}
ENDS_IN_NOISE = {"jsd"}  # schedules whose last beta is 1
SCHEDULE_ALIASES = {
    "squaredcos_cap_v2": "cosine",  # diffusers
    "scaled_linear": "quadratic",  # diffusers
    "quad": "quadratic",  # Ho et al.
}

# What the logarithm of the posterior variance is taken of: at t = 0 the variance itself is 0.
CLIPPED_LOG_VARIANCES: dict[str, Callable[[Betas], Betas]] = {
    "second_entry": lambda variance: np.append(variance[:2][-1], variance[1:]),
    "floor": lambda variance: variance,
}
LOG_FLOOR = 1e-20

if TYPE_CHECKING:
    ScheduleName = str
    ClippedLogVariance = str
else:
    ScheduleName = Literal[tuple(BETAS)]
    ClippedLogVariance = Literal[tuple(CLIPPED_LOG_VARIANCES)]


class Schedule(struct.PyTreeNode):
    """The tables of a Gaussian diffusion, each of shape [T]; index t = 0 means noised once.

    All are derived in float64 and cast once. In float32, 1 - alphas_cumprod[0], which is 1e-4,
    would keep only three digits.
    """

    betas: Float[Array, " T"]
    alphas_cumprod: Float[Array, " T"]
    alphas_cumprod_prev: Float[Array, " T"]
    sqrt_alphas_cumprod: Float[Array, " T"]
    sqrt_one_minus_alphas_cumprod: Float[Array, " T"]
    log_one_minus_alphas_cumprod: Float[Array, " T"]
    sqrt_recip_alphas_cumprod: Float[Array, " T"]
    sqrt_recipm1_alphas_cumprod: Float[Array, " T"]
    posterior_variance: Float[Array, " T"]
    posterior_log_variance_clipped: Float[Array, " T"]
    posterior_mean_coef1: Float[Array, " T"]
    posterior_mean_coef2: Float[Array, " T"]

    @property
    def num_timesteps(self) -> int:
        """T, the length of the chain."""
        return self.betas.shape[0]


def make_schedule(
    betas: Betas, *, dtype: Any = jnp.float32, clipped_log_variance: str = "second_entry"
) -> Schedule:
    """Derive every table from `betas` in float64 and cast to `dtype` (Ho et al. 2020, Eqs. 4-7).

    The posterior variance at t = 0 is zero. Its clipped logarithm there is the one of t = 1
    ("second_entry": Ho et al., OpenAI) or the logarithm of 1e-20 ("floor": lucidrains, diffusers).
    Where the last beta is 1, sqrt_recip_alphas_cumprod and sqrt_recipm1_alphas_cumprod end in
    infinity and every other table is finite.

    Raises UserError unless betas is a non-empty vector with 0 < beta < 1; its last may be 1.

    Examples:
        >>> import jax_ddpm as jd, numpy as np
        >>> schedule = jd.make_schedule(np.linspace(1e-4, 0.02, 100) ** 1.5)
        >>> schedule.num_timesteps, schedule.posterior_variance.shape
        (100, (100,))
    """
    betas = _check_betas(betas)
    alphas_cumprod = np.cumprod(1 - betas)
    alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
    posterior_variance = betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)
    with np.errstate(divide="ignore"):
        recip_alphas_cumprod = 1 / alphas_cumprod
    coef2 = (1 - alphas_cumprod_prev) * np.sqrt(1 - betas) / (1 - alphas_cumprod)
    tables = {
        "betas": betas,
        "alphas_cumprod": alphas_cumprod,
        "alphas_cumprod_prev": alphas_cumprod_prev,
        "sqrt_alphas_cumprod": np.sqrt(alphas_cumprod),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alphas_cumprod),
        "log_one_minus_alphas_cumprod": np.log(1 - alphas_cumprod),
        "sqrt_recip_alphas_cumprod": np.sqrt(recip_alphas_cumprod),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(recip_alphas_cumprod - 1),
        "posterior_variance": posterior_variance,
        "posterior_log_variance_clipped": _log_clipped(posterior_variance, clipped_log_variance),
        "posterior_mean_coef1": betas * np.sqrt(alphas_cumprod_prev) / (1 - alphas_cumprod),
        "posterior_mean_coef2": coef2,
    }
    return Schedule(**{name: jnp.asarray(table, dtype) for name, table in tables.items()})


def _check_betas(betas: Any) -> Betas:
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise UserError(f"betas must be a non-empty vector, got shape {betas.shape}")
    if not (np.all(betas > 0) and np.all(betas[:-1] < 1) and betas[-1] <= 1):
        raise UserError(
            f"every beta must lie in (0, 1), got {betas.min():.6g} to {betas.max():.6g}: "
            f"this schedule does not work with T = {betas.size}, use a longer chain"
        )
    return betas


def _log_clipped(variance: Betas, clip: str) -> Betas:
    clip = check_choice("clipped_log_variance", clip, CLIPPED_LOG_VARIANCES)
    return np.log(np.maximum(CLIPPED_LOG_VARIANCES[clip](variance), LOG_FLOOR))


def list_schedules_with(number: str) -> list[str]:
    """The schedules that take a number: "beta_start", "beta_end" or "cosine_s"."""
    return [name for name, numbers in SCHEDULE_NUMBERS.items() if number in numbers]


def named_betas(
    name: str,
    num_timesteps: int,
    *,
    zero_terminal_snr: bool = False,
    beta_start: float | None = None,
    beta_end: float | None = None,
    cosine_s: float | None = None,
) -> Betas:
    """The T = `num_timesteps` betas of the schedule called `name` (a key of BETAS, or an alias).

    `beta_start` and `beta_end` are the first and last beta, `cosine_s` the offset s of the cosine;
    None: the schedule's own. `zero_terminal_snr`: see `rescale_zero_terminal_snr`. Raises UserError
    for another name, for a number that the schedule does not have, for T < 1, and where the
    schedule does not work at that T.
    """
    name = check_choice("schedule", name, BETAS, SCHEDULE_ALIASES)
    if not hasattr(num_timesteps, "__index__") or num_timesteps < 1:
        raise UserError(
            f"the number of timesteps must be a whole number of at least 1, got {num_timesteps}"
        )
    given = {"beta_start": beta_start, "beta_end": beta_end, "cosine_s": cosine_s}
    betas = BETAS[name](num_timesteps, **_name_numbers(name, given))
    return rescale_zero_terminal_snr(betas) if zero_terminal_snr else betas


def _name_numbers(name: str, given: dict[str, float | None]) -> dict[str, float]:
    """The numbers that are `given`, under the names of the schedule's function."""
    names = SCHEDULE_NUMBERS.get(name, {})
    numbers = {number: value for number, value in given.items() if value is not None}
    for number, value in numbers.items():
        if number not in names:
            users = join_or(list_schedules_with(number))
            raise UserError(f"{number} {value:g} has no effect on {name}: it is for {users}")
    return {names[number]: value for number, value in numbers.items()}


def named_schedule(
    name: str,
    num_timesteps: int,
    *,
    dtype: Any = jnp.float32,
    clipped_log_variance: str = "second_entry",
    zero_terminal_snr: bool = False,
    beta_start: float | None = None,
    beta_end: float | None = None,
    cosine_s: float | None = None,
) -> Schedule:
    """The schedule of `named_betas`, with the tables of `make_schedule`.

    Examples:
        >>> import jax_ddpm as jd
        >>> jd.named_schedule("cosine", 1000).num_timesteps
        1000
        >>> schedule = jd.named_schedule("linear", 300, beta_start=0.001, beta_end=0.05)
    """
    betas = named_betas(
        name,
        num_timesteps,
        zero_terminal_snr=zero_terminal_snr,
        beta_start=beta_start,
        beta_end=beta_end,
        cosine_s=cosine_s,
    )
    return make_schedule(betas, dtype=dtype, clipped_log_variance=clipped_log_variance)
