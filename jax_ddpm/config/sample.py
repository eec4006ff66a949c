"""How images are drawn: the settings, their checks, and the timesteps they visit."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from jax_ddpm.config.plain_values import make_check
from jax_ddpm.errors import UserError, check_choice, flag_name
from jax_ddpm.process.grids import (
    CONTINUOUS,
    GridName,
    parse_timesteps,
    space_timesteps,
    timestep_grid,
)
from jax_ddpm.samplers import SAMPLERS, SamplerName

MAX_STEPS, MAX_FRAMES = 1_000_000, 10_000
GRID = ("num_steps", "spacing", "respacing", "timesteps")  # the settings that choose the levels


@dataclass(frozen=True)
class SampleConfig:
    """How images are drawn."""

    sampler: SamplerName = "ddpm"
    """The sampler. ddpm draws noise in every step; ddim and the other solvers need fewer steps."""
    num_steps: int = 1000
    """Steps per image. A step is one network evaluation, except that heun, kdpm2, kdpm2_ancestral
    and dpmpp_sde take two in all but the last, plms two in the first, and pndm four in each of the
    first three."""
    spacing: GridName = "trailing"
    """Which timesteps are visited if num_steps is less than T. leading and quad start below the
    last one, although images start from pure noise. log_snr and karras visit noise levels between
    the timesteps, in equal steps of log(signal/sigma) or (sigma/signal)^(1/7); karras_trailing is
    like karras, but ends at T / num_steps - 1 and passes over sigma/signal above 120 in one step.
    A network with a table of times is evaluated at the nearest timesteps."""
    respacing: str | None = None
    """Timesteps to visit in OpenAI's notation: "250", "10,15,20" (counts in sections of equal
    length) or "ddim50". Replaces num_steps and spacing."""
    timesteps: str | None = None
    """A descending list of timesteps to visit, such as "999,850,736,645,545,455,343,233,124,24".
    Replaces num_steps and spacing."""
    variance: Literal["fixed_small", "fixed_large"] = "fixed_large"
    """Variance of the ancestral sampler: beta (fixed_large) or beta-tilde (fixed_small)."""
    eta: float = 0.0
    """Noise of ddim: 0 is deterministic, 1 is ancestral sampling."""
    churn: float = 0.0
    """Noise that heun adds before its steps (S_churn of Karras et al. 2022): 0 is deterministic,
    0.41 times num_steps is the largest useful value."""
    churn_min: float = 0.0
    """Lowest sigma/signal at which churn is applied."""
    churn_max: float | None = None
    """Highest sigma/signal at which churn is applied; None: no limit."""
    churn_noise: float = 1.0
    """Standard deviation of the noise that churn adds."""
    clip_x_0: bool = True
    """Clip each predicted clean image to [-1, 1]."""
    dynamic_threshold: float | None = None
    """Clip each predicted clean image to this quantile of its absolute pixel values, for example
    0.995, and divide by it, if it is above 1. Replaces clip_x_0."""
    rederive_eps: bool = True
    """Compute eps again from the clipped clean image. If off, the network's own eps is used, as in
    diffusers."""
    frames: int = 25
    """Frames of the GIF, from the noise to the images; at most one more than there are steps."""
    frames_of: Literal["x_t", "x_0"] = "x_t"
    """What the GIF shows after the noise. x_t: the images on their way. x_0: the clean images as
    the network predicts them at each step."""
    stretch: bool = False
    """Stretch the contrast of each image to the full range, for images that are not clipped."""
    guidance: float | None = None
    """Scale of classifier-free guidance: 1 is the class-conditional network, larger values push
    further towards the class, 0 ignores the class; None: no guidance. Needs a run trained with
    diffusion.label_dropout."""
    guidance_interval: tuple[float, float] | None = None
    """Lowest and highest timestep at which guidance is applied; None: every timestep."""
    guidance_rescale: float = 0.0
    """How far the contrast of each guided output is brought back to the unguided contrast: 0 not at
    all, 1 completely."""


def change_settings(of_run: SampleConfig, changes: Mapping[str, Any]) -> SampleConfig:
    """Apply `changes`, by name, to the settings of a run; "steps" is short for "num_steps".

    A different sampler brings its own spacing. Choosing steps, spacing, respacing or timesteps
    overrides the run's respacing or list of timesteps.

    Raises UserError for a setting that does not exist, and for two choices of the timesteps.
    """
    names = [field.name for field in fields(SampleConfig)]
    changes = {
        check_choice("the setting", name, names, {"steps": "num_steps"}): value
        for name, value in changes.items()
    }
    grid = {name: changes[name] for name in GRID if changes.get(name) is not None}
    _require_one_grid(grid)
    if grid:
        of_run = replace(of_run, respacing=None, timesteps=None)
    sampler = changes.get("sampler", of_run.sampler)
    if sampler != of_run.sampler:
        check_choice("--sampler", sampler, SAMPLERS)
        of_run = replace(of_run, spacing=choose_spacing(sampler, of_run))
    return replace(of_run, **changes)


def choose_spacing(sampler: SamplerName, of_run: SampleConfig) -> GridName:
    """The spacing that `sampler` has by default: its own, or else the run's.

    If the run's sampler has brought that spacing, it is no choice for other samplers.
    """
    brought = SAMPLERS[of_run.sampler].spacing == of_run.spacing
    default = SampleConfig.spacing if brought else of_run.spacing
    return SAMPLERS[sampler].spacing or default


def _require_one_grid(grid: Mapping[str, Any]) -> None:
    """Raise UserError if respacing or timesteps is combined with another choice of timesteps."""
    if len(grid) > 1 and not {"respacing", "timesteps"}.isdisjoint(grid):
        given = [f"{_flag(name, '--')} {value}" for name, value in grid.items()]
        raise UserError(f"{' and '.join(given)} each choose the timesteps: give only one of them")


def validate_sample(
    sample: SampleConfig,
    num_timesteps: int,
    *,
    zero_terminal_snr: bool = False,
    whole_timesteps: bool = False,
    prefix: str = "--",
) -> None:
    """Raise UserError if a chain of `num_timesteps` cannot be sampled with these settings.

    `zero_terminal_snr`: the last timestep is pure noise. `whole_timesteps`: the network looks up
    times in a table, so it takes only whole timesteps. `prefix` starts the flag of each setting.
    """
    check = make_check(sample, prefix)
    only_one = sample.respacing is None or sample.timesteps is None
    check("timesteps", only_one, f"left out with {prefix}respacing {sample.respacing}")
    most = f"at most {MAX_STEPS:,}"
    check("num_steps", sample.num_steps <= MAX_STEPS, most, _flag("num_steps", prefix))
    if visits_timesteps(sample):
        _validate_timesteps(sample, num_timesteps, prefix)
    else:
        _validate_continuous(
            sample, num_timesteps if whole_timesteps else MAX_STEPS, zero_terminal_snr, prefix
        )
    check(
        "sampler",
        not (whole_timesteps and SAMPLERS[sample.sampler].looks_between),
        "one that stays at the grid, such as heun: this run's network has a table of times and "
        "cannot take the levels inside the steps",
    )
    check("frames", sample.frames >= 2, "at least 2")
    check("frames", sample.frames <= MAX_FRAMES, f"at most {MAX_FRAMES:,}")
    check("eta", 0 <= sample.eta <= 1, "between 0 and 1")
    quantile = sample.dynamic_threshold
    possible = quantile is None or 0 < quantile <= 1
    check("dynamic_threshold", possible, "a quantile, above 0 and at most 1")
    _validate_churn(sample, whole_timesteps, prefix)
    _validate_guidance(sample, num_timesteps, prefix)


def _flag(name: str, prefix: str) -> str:
    """The flag of a setting; num_steps without a section is --steps."""
    return "--steps" if (name, prefix) == ("num_steps", "--") else flag_name(name, prefix)


def _validate_continuous(
    sample: SampleConfig, most: int, zero_terminal_snr: bool, prefix: str
) -> None:
    """Check the settings of a grid with levels between the timesteps, in at most `most` steps."""
    check, flag = make_check(sample, prefix), _flag("num_steps", prefix)
    check("num_steps", sample.num_steps >= 1, "at least 1", flag)
    few = f"at most {most}: this run's network has a table of as many times"
    check("num_steps", sample.num_steps <= most, few, flag)
    check(
        "spacing",
        not zero_terminal_snr or sample.spacing == "karras_trailing",
        "a spacing of timesteps, such as trailing: this run's schedule ends in pure noise, where "
        "log(sigma/signal) is infinite",
    )


def _validate_timesteps(sample: SampleConfig, num_timesteps: int, prefix: str) -> None:
    """Check the timesteps that are visited."""
    try:
        sampling_timesteps(sample, num_timesteps)
    except (ValueError, TypeError, OverflowError) as error:
        name = _find_list(sample) or "num_steps"
        given = f"{_flag(name, prefix)} {getattr(sample, name)}"
        raise UserError(f"{given}: {error}") from error


def _validate_churn(sample: SampleConfig, whole_timesteps: bool, prefix: str) -> None:
    check = make_check(sample, prefix)
    churn, low, high = sample.churn, sample.churn_min, sample.churn_max
    check("churn", 0 <= churn < inf, "0 or more")
    only_heun = f"0 with {prefix}sampler {sample.sampler}: only heun has churn"
    check("churn", churn == 0 or sample.sampler == "heun", only_heun)
    table = "0: this run's network has a table of times and cannot take levels in between"
    check("churn", churn == 0 or not whole_timesteps, table)
    check("churn_min", low >= 0, "0 or more")
    check("churn_max", high is None or high >= low, f"at least {prefix}churn-min {low:g}")
    check("churn_noise", sample.churn_noise >= 0, "0 or more")


def _validate_guidance(sample: SampleConfig, num_timesteps: int, prefix: str) -> None:
    check = make_check(sample, prefix)
    scale, interval, rescale = sample.guidance, sample.guidance_interval, sample.guidance_rescale
    check("guidance", scale is None or 0 <= scale < inf, "0 or more")
    check("guidance_rescale", 0 <= rescale <= 1, "between 0 and 1")
    without = scale is None
    check(
        "guidance_interval", not without or interval is None, f"left out without {prefix}guidance"
    )
    check("guidance_rescale", not without or rescale == 0, f"0 without {prefix}guidance")
    last = num_timesteps - 1
    possible = interval is None or 0 <= interval[0] <= interval[1] <= last
    check("guidance_interval", possible, f"two timesteps between 0 and {last}, the lower one first")


def sampling_timesteps(sample: SampleConfig, num_timesteps: int) -> Int[np.ndarray, " S1"]:
    """The timesteps that sampling visits, descending, followed by -1.

    Raises ValueError for an impossible grid and for a spacing with levels between the timesteps.
    """
    if sample.timesteps is not None:
        return parse_timesteps(num_timesteps, sample.timesteps)
    if sample.respacing is not None:
        return space_timesteps(num_timesteps, sample.respacing)
    if sample.spacing in CONTINUOUS:
        raise ValueError(f"{sample.spacing!r} spacing visits levels between the timesteps")
    return timestep_grid(num_timesteps, sample.num_steps, sample.spacing)


def visits_timesteps(sample: SampleConfig) -> bool:
    """Whether sampling visits only timesteps, not levels between them."""
    return _find_list(sample) is not None or sample.spacing not in CONTINUOUS


def _find_list(sample: SampleConfig) -> str | None:
    """The setting that lists the timesteps in place of a spacing; None if there is none."""
    listed = (name for name in ("timesteps", "respacing") if getattr(sample, name) is not None)
    return next(listed, None)


def describe_low_start(sample: SampleConfig, num_timesteps: int) -> str | None:
    """Say that sampling starts more than a tenth of the chain below T - 1; None if it does not."""
    if not visits_timesteps(sample):
        return None
    timesteps = sampling_timesteps(sample, num_timesteps)
    first, last = int(timesteps[0]), num_timesteps - 1
    if last - first <= num_timesteps / 10:
        return None
    listed = _find_list(sample) is not None
    grid = "the listed timesteps" if listed else f"{len(timesteps) - 1} {sample.spacing} timesteps"
    way_out = "start the list nearer to the end" if listed else "give --spacing trailing"
    return (
        f"{grid} start at t = {first} of 0 to {last}, but x_T is pure noise, as it is near "
        f"t = {last} only, so images may lack contrast: {way_out}"
    )
