"""Grids: the timesteps, or the levels between them, that a sampler visits."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jax_ddpm.errors import UserError, check_choice
from jax_ddpm.process.levels import Level, append_clean_image, level_at, log_sigma_table
from jax_ddpm.process.schedules import Betas, Schedule

Grid = Int[np.ndarray, " num_levels"]  # S descending timesteps, then -1, the clean image
Ascending = Int[np.ndarray, " S"]
RHO = 7  # Karras et al. 2022, Eq. 5
# LARGE_SIGMA is just above the end of Ho et al.'s linear schedule, 157. Karras et al. start at 80.
LARGE_SIGMA, START_SIGMA = 160.0, 120.0


def _single_linspace(start: int, end: int, num_steps: int) -> Float[np.ndarray, " num_points"]:
    """`num_steps` equal steps in float32, counted from the nearer end as PyTorch's linspace does.

    Where exact arithmetic gives an integer, rounding decides which one the truncation leaves.
    """
    i = np.arange(num_steps + 1)
    step = np.float64(np.float32(end - start) / np.float32(num_steps))
    from_start, from_end = start + step * i, end - step * (num_steps - i)
    nearer = np.where(i < (num_steps + 1) // 2, from_start, from_end)
    return nearer.astype(np.float32)  # rounded once, here


# Functions of T and S that give the S timesteps visited, ascending.
SPACINGS: dict[str, Callable[[int, int], np.ndarray]] = {
    "leading": lambda T, S: np.arange(S) * (T // S),
    "trailing": lambda T, S: np.round(T * np.arange(1, S + 1) / S) - 1,
    "linspace": lambda T, S: np.round(np.linspace(0, T - 1, S)),
    "quad": lambda T, S: np.trunc(np.linspace(0, np.sqrt(0.8 * T), S) ** 2),
    "lucidrains": lambda T, S: np.trunc(_single_linspace(-1, T - 1, S))[1:],
}


def _space_karras(start: float, end: float, num_steps: int) -> np.ndarray:
    part = np.linspace(0.0, 1.0, num_steps)
    low, high = np.exp(end / RHO), np.exp(start / RHO)
    return np.clip(RHO * np.log(high + part * (low - high)), end, start)  # rounding may lie beyond


def _space_log_snr(start: float, end: float, num_steps: int) -> np.ndarray:
    return start + np.linspace(0.0, 1.0, num_steps) * (end - start)


def _space_karras_trailing(table: np.ndarray, num_steps: int) -> np.ndarray:
    """Karras et al.'s steps to where trailing timesteps end; before them one from near noise."""
    T = len(table)
    end = float(np.interp(max(T / num_steps - 1, 0), np.arange(T), table))
    if table[-1] <= np.log(LARGE_SIGMA):
        return _space_karras(table[-1], end, num_steps)
    # In few steps to the end, sigma / signal falls to at least a quarter in each.
    start = min(np.log(START_SIGMA), end + max(num_steps - 2, 0) * np.log(4))
    rest = _space_karras(start, end, num_steps - 1) if num_steps > 1 else np.empty(0)
    return np.append(table[-1], rest)


# Functions of the log(sigma / signal) of all timesteps and of S that give those visited.
CONTINUOUS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "log_snr": lambda table, S: _space_log_snr(table[-1], table[0], S),
    "karras": lambda table, S: _space_karras(table[-1], table[0], S),
    "karras_trailing": _space_karras_trailing,
}

if TYPE_CHECKING:
    Spacing = str
    ContinuousSpacing = str
    GridName = str
else:
    Spacing = Literal[tuple(SPACINGS)]
    ContinuousSpacing = Literal[tuple(CONTINUOUS)]
    GridName = Literal[(*SPACINGS, *CONTINUOUS)]


def timestep_grid(num_timesteps: int, num_steps: int, spacing: str = "trailing") -> Grid:
    """The S timesteps that a sampler visits, descending, followed by -1, the clean image.

    trailing: T - 1 downwards in steps of T / S (Lin et al. 2023). leading: multiples of T // S from
    0 (DDIM paper, "linear"). linspace: both ends included. quad: quadratic up to 0.8 T (DDIM paper,
    appendix D.2). lucidrains: truncated linspace from -1 to T - 1.

    A chain from pure noise should start near T - 1. `leading` starts at T // S * (S - 1), which is
    far below if S is small or T // S is rounded: 500 timesteps too low for S = 501 of T = 1000.

    Raises UserError unless 1 <= S <= T, for an unknown spacing, and where `quad` would visit a
    timestep twice.

    Examples:
        >>> import jax_ddpm as jd
        >>> jd.timestep_grid(1000, 4).tolist()
        [999, 749, 499, 249, -1]
    """
    spacing = check_choice("spacing", spacing, SPACINGS)
    _require_steps(num_timesteps, num_steps)
    ascending = SPACINGS[spacing](num_timesteps, num_steps)
    if np.any(np.diff(ascending) <= 0):
        raise UserError(
            f"{num_steps} steps with {spacing!r} spacing visit a timestep of T = {num_timesteps} "
            "twice: use fewer steps or another spacing"
        )
    return _descend(ascending)


def _require_steps(num_timesteps: int, num_steps: int) -> None:
    if not hasattr(num_steps, "__index__") or not 1 <= num_steps <= num_timesteps:
        raise UserError(
            f"the number of sampling steps must be between 1 and T = {num_timesteps}, "
            f"got {num_steps}"
        )


def _descend(ascending: np.ndarray) -> Grid:
    return np.append(ascending[::-1], -1).astype(np.int32)


def space_timesteps(num_timesteps: int, sections: str | Sequence[int]) -> Grid:
    """The timesteps of a respaced chain, descending, followed by -1 (Nichol & Dhariwal 2021).

    "10,15,20" cuts 0..T-1 into three sections of nearly equal length and chooses 10, 15 and 20
    timesteps, evenly spread over each section from end to end. "ddim50" chooses the multiples of
    the smallest integer stride that gives exactly 50.

    Raises UserError where there is no such choice.

    Examples:
        >>> import jax_ddpm as jd
        >>> jd.space_timesteps(1000, "ddim4").tolist()
        [750, 500, 250, 0, -1]
    """
    if isinstance(sections, str) and sections.startswith("ddim"):
        count = _parse_count(sections.removeprefix("ddim"), sections)
        return _descend(_stride(num_timesteps, count))
    if isinstance(sections, str):
        sections = [_parse_count(part, sections) for part in sections.split(",")]
    return _descend(_fill_sections(num_timesteps, sections))


def _parse_count(text: str, sections: str) -> int:
    if not text.strip().isdigit():
        raise UserError(
            f'respacing is {sections!r}, but it must be like "25", "10,15,20" or "ddim50"'
        )
    return int(text)


def _stride(num_timesteps: int, num_steps: int) -> Ascending:
    for stride in range(1, num_timesteps):
        if len(range(0, num_timesteps, stride)) == num_steps:
            return np.arange(0, num_timesteps, stride)
    raise UserError(f"no integer stride gives exactly {num_steps} of T = {num_timesteps} timesteps")


def _fill_sections(num_timesteps: int, counts: Sequence[int]) -> Ascending:
    size, longer = divmod(num_timesteps, len(counts))
    first, ascending = 0, list[int]()
    for i, count in enumerate(counts):
        length = size + (i < longer)
        if not 0 <= count <= length:
            raise UserError(f"{count} timesteps do not fit into a section of {length}")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        offsets = accumulate([stride] * (count - 1), initial=0.0) if count else []
        ascending += [first + round(offset) for offset in offsets]
        first += length
    if not ascending:
        raise UserError("a respaced chain needs at least one timestep")
    return np.array(ascending)


def respace_betas(betas: Betas, timesteps: Grid) -> Float[np.ndarray, " S"]:
    """The betas of the chain that visits only `timesteps`, a descending grid that ends with -1.

    `make_schedule` then gives a schedule of S timesteps with the alphas_cumprod of the visited
    ones. `sample` does not need it: it does the same with the levels of the full schedule.
    """
    alphas_cumprod = np.cumprod(1 - np.asarray(betas, np.float64))[timesteps[:-1]][::-1]
    return 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])


def choose_levels(
    schedule: Schedule, num_steps: int, spacing: str, *, whole: bool = False
) -> Level:
    """The S + 1 levels that a sampler visits, in any spacing; the last is the clean image.

    With `whole`, every level is that of a timestep.
    """
    spacing = check_choice("spacing", spacing, [*SPACINGS, *CONTINUOUS])
    if spacing in CONTINUOUS:
        return continuous_levels(schedule, num_steps, spacing, whole=whole)
    timesteps = timestep_grid(schedule.num_timesteps, num_steps, spacing)
    return level_at(schedule, jnp.asarray(timesteps))


def continuous_levels(
    schedule: Schedule, num_steps: int, spacing: str, *, whole: bool = False
) -> Level:
    """S levels from the one of T - 1 to the one of t = 0, descending, then the clean image, t = -1.

    log_snr: equal steps of log(signal / sigma) (Lu et al. 2022). karras: equal steps of
    (sigma / signal)^(1/7) (Karras et al. 2022, Eq. 5). karras_trailing: the same to t = T / S - 1;
    if the schedule ends above sigma / signal = 160, one step leads down to 120 first. t is the
    float that `level_of_sigma` gives. With `whole`, the levels are those of the nearest timesteps,
    each visited once.

    Raises UserError for no step, with `whole` for more than T, for an unknown spacing, and where
    the schedule ends in pure noise, except for karras_trailing.
    """
    spacing = check_choice("spacing", spacing, CONTINUOUS)
    if num_steps < 1:
        raise UserError(f"the number of sampling steps must be at least 1, got {num_steps}")
    log_sigmas = log_sigma_table(schedule)
    if not np.isfinite(log_sigmas[-1]) and spacing != "karras_trailing":
        raise UserError(
            f"{spacing!r} spacing needs a schedule that keeps some signal: with zero terminal SNR "
            "use a spacing in t, such as trailing"
        )
    if whole:
        _require_steps(len(log_sigmas), num_steps)
    chosen = CONTINUOUS[spacing](log_sigmas, num_steps)
    t = np.interp(chosen, log_sigmas, np.arange(len(log_sigmas)))
    if whole:
        return level_at(schedule, jnp.asarray(_descend(_round_apart(t))))
    return append_clean_image(t, np.exp(chosen), schedule.betas.dtype)


def _round_apart(descending: np.ndarray) -> Ascending:
    """Round to timesteps, none twice, between the first and the last one; ascending."""
    order = np.arange(len(descending))
    apart = np.minimum.accumulate(np.round(descending) + order) - order  # where they meet: down
    room = np.round(descending[-1]) + order[::-1]  # for those that follow
    return np.maximum(apart, room)[::-1].astype(np.int32)


def parse_timesteps(num_timesteps: int, listed: str) -> Grid:
    """The timesteps of a list like "999,850,736", descending, followed by -1.

    For published lists (Align Your Steps, Sabour et al. 2024). Raises UserError unless the list
    consists of integers that descend between T - 1 and 0.
    """
    parts = [part.strip() for part in listed.split(",")]
    if not all(part.isdigit() for part in parts):
        raise UserError(f'the timesteps are {listed!r}, but they must be like "999,850,736"')
    timesteps = np.array([*map(int, parts), -1])
    if timesteps[0] >= num_timesteps or np.any(np.diff(timesteps) >= 0):
        raise UserError(
            f"the timesteps {listed} must descend between T - 1 = {num_timesteps - 1} and 0"
        )
    return timesteps.astype(np.int32)
