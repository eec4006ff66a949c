"""Grids: the timesteps, or the levels between them, that a sampler visits."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from jax_ddpm.process.levels import Level, log_sigma_table, with_clean_image
from jax_ddpm.process.schedules import Betas, Schedule

Spacing = Literal["leading", "trailing", "linspace", "quad", "lucidrains"]


ContinuousSpacing = Literal["log_snr", "karras"]


GridName = Literal[Spacing, ContinuousSpacing]


CONTINUOUS: tuple[ContinuousSpacing, ...] = ("log_snr", "karras")


RHO = 7  # Karras et al. 2022, Eq. 5


def timestep_grid(
    num_timesteps: int, num_steps: int, spacing: Spacing = "leading"
) -> Int[np.ndarray, " S+1"]:
    """The S timesteps that a sampler visits, descending, followed by -1, the clean image.

    leading: multiples of T // S from 0 (DDIM paper, "linear"). trailing: T - 1 downwards in steps
    of T / S (Lin et al. 2023). linspace: both ends included. quad: quadratic up to 0.8 T (DDIM
    paper, appendix D.2). lucidrains: truncated linspace from -1 to T - 1.

    Raises ValueError unless 1 <= S <= T, and where `quad` would visit a timestep twice.
    """
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(
            f"the number of sampling steps must be between 1 and T = {num_timesteps}, "
            f"got {num_steps}"
        )
    ascending = _ASCENDING[spacing](num_timesteps, num_steps)
    if np.any(np.diff(ascending) <= 0):
        raise ValueError(
            f"{num_steps} steps with {spacing!r} spacing visit a timestep of T = {num_timesteps} "
            "twice: use fewer steps or another spacing"
        )
    return np.append(ascending[::-1], -1).astype(np.int32)


_ASCENDING: dict[Spacing, Callable[[int, int], Int[np.ndarray, " S"]]] = {
    "leading": lambda T, S: np.arange(S) * (T // S),
    "trailing": lambda T, S: np.round(T * np.arange(1, S + 1) / S) - 1,
    "linspace": lambda T, S: np.round(np.linspace(0, T - 1, S)),
    "quad": lambda T, S: np.trunc(np.linspace(0, np.sqrt(0.8 * T), S) ** 2),
    "lucidrains": lambda T, S: np.trunc(_single_linspace(-1, T - 1, S))[1:],
}


def _single_linspace(start: int, end: int, num_steps: int) -> Float[np.ndarray, " S+1"]:
    """`num_steps` equal steps in float32, taken from the nearer end as PyTorch's linspace does.

    Where exact arithmetic has a whole number, rounding decides which one the truncation leaves.
    """
    i = np.arange(num_steps + 1)
    step = np.float64(np.float32(end - start) / np.float32(num_steps))
    from_start, from_end = (
        start + step * i,
        end - step * (num_steps - i),
    )  # rounded once, at the end
    return np.where(i < (num_steps + 1) // 2, from_start, from_end).astype(np.float32)


def space_timesteps(num_timesteps: int, sections: str | Sequence[int]) -> Int[np.ndarray, " S+1"]:
    """The timesteps of a respaced chain, descending, followed by -1 (Nichol & Dhariwal 2021).

    "10,15,20" cuts 0..T-1 into three parts of nearly equal length and takes 10, 15 and 20 evenly
    spread timesteps of them, the ends of each part included. "ddim50" takes the multiples of the
    smallest whole stride that gives exactly 50.

    Raises ValueError where there is no such choice.
    """
    if isinstance(sections, str) and sections.startswith("ddim"):
        ascending = _whole_stride(num_timesteps, _count(sections.removeprefix("ddim"), sections))
    else:
        if isinstance(sections, str):
            sections = [_count(part, sections) for part in sections.split(",")]
        ascending = _sections(num_timesteps, sections)
    return np.append(ascending[::-1], -1).astype(np.int32)


def _count(text: str, sections: str) -> int:
    if not text.strip().isdigit():
        raise ValueError(
            f'respacing is {sections!r}, but it must be like "25", "10,15,20" or "ddim50"'
        )
    return int(text)


def _whole_stride(num_timesteps: int, num_steps: int) -> Int[np.ndarray, " S"]:
    for stride in range(1, num_timesteps):
        if len(range(0, num_timesteps, stride)) == num_steps:
            return np.arange(0, num_timesteps, stride)
    raise ValueError(f"no whole stride takes exactly {num_steps} of T = {num_timesteps} timesteps")


def _sections(num_timesteps: int, counts: Sequence[int]) -> Int[np.ndarray, " S"]:
    size, longer = divmod(num_timesteps, len(counts))
    first, ascending = 0, list[int]()
    for i, count in enumerate(counts):
        length = size + (i < longer)
        if not 0 <= count <= length:
            raise ValueError(f"{count} timesteps cannot be taken from a part of {length}")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        offsets = accumulate([stride] * (count - 1), initial=0.0) if count else []
        ascending += [first + round(offset) for offset in offsets]
        first += length
    if not ascending:
        raise ValueError("a respaced chain needs at least one timestep")
    return np.array(ascending)


def respaced_betas(betas: Betas, timesteps: Int[np.ndarray, " S+1"]) -> Betas:
    """The betas of the chain that visits only `timesteps`, a descending grid that ends with -1.

    `make_schedule` of them is a schedule of S timesteps whose alphas_cumprod are those of the
    visited timesteps. `sample` needs no such schedule: it does the same with the full one's levels.
    """
    alphas_cumprod = np.cumprod(1 - np.asarray(betas, np.float64))[timesteps[:-1]][::-1]
    return 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])


def continuous_levels(schedule: Schedule, num_steps: int, spacing: ContinuousSpacing) -> Level:
    """S levels from that of T - 1 to that of t = 0, descending, and the clean image, t = -1.

    log_snr: equal steps of log(signal / sigma) (Lu et al. 2022). karras: equal steps of
    (sigma / signal)^(1/7) (Karras et al. 2022, Eq. 5). t is the float that `level_of_sigma` gives.

    Raises ValueError for no step, and where the schedule ends in pure noise.
    """
    if num_steps < 1:
        raise ValueError(f"the number of sampling steps must be at least 1, got {num_steps}")
    log_sigmas = log_sigma_table(schedule)
    if not np.isfinite(log_sigmas[-1]):
        raise ValueError(
            f"{spacing!r} spacing needs a schedule that keeps some signal: zero terminal SNR goes "
            "with spacings in t, such as trailing"
        )
    part = np.linspace(0.0, 1.0, num_steps) if num_steps > 1 else np.zeros(1)
    end, start = log_sigmas[0], log_sigmas[-1]
    if spacing == "log_snr":
        chosen = start + part * (end - start)
    else:
        low, high = np.exp(end / RHO), np.exp(start / RHO)
        chosen = RHO * np.log(high + part * (low - high))
        chosen = np.clip(chosen, end, start)  # beyond which rounding may lie
    t = np.interp(chosen, log_sigmas, np.arange(len(log_sigmas)))
    return with_clean_image(t, np.exp(chosen), schedule.betas.dtype)


def listed_timesteps(num_timesteps: int, listed: str) -> Int[np.ndarray, " S+1"]:
    """The timesteps of a list like "999,850,736", descending, followed by -1.

    So published lists can be given (Align Your Steps, Sabour et al. 2024). Raises ValueError unless
    the list is of whole numbers that descend between T - 1 and 0.
    """
    parts = [part.strip() for part in listed.split(",")]
    if not all(part.isdigit() for part in parts):
        raise ValueError(f'the timesteps are {listed!r}, but they must be like "999,850,736"')
    timesteps = np.array([*map(int, parts), -1])
    if timesteps[0] >= num_timesteps or np.any(np.diff(timesteps) >= 0):
        raise ValueError(
            f"the timesteps {listed} must descend between T - 1 = {num_timesteps - 1} and 0"
        )
    return timesteps.astype(np.int32)
