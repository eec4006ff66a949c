"""How images are drawn: the settings, which of them cannot work, and the timesteps they visit."""

from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np
from jaxtyping import Int

from jax_ddpm.errors import UserError
from jax_ddpm.errors import require as _require
from jax_ddpm.process.grids import (
    CONTINUOUS,
    GridName,
    parse_timesteps,
    space_timesteps,
    timestep_grid,
)
from jax_ddpm.samplers import SAMPLERS, SamplerName

MAX_STEPS, MAX_FRAMES = 1_000_000, 10_000


@dataclass(frozen=True)
class SampleConfig:
    """How images are drawn."""

    sampler: SamplerName = "ddpm"
    num_steps: int = 1000
    """Steps per image, at most T with spacings in t. Each is one evaluation of the network; heun
    takes two in all but the last, plms two in the first, pndm four in each of the first three."""
    spacing: GridName = "leading"
    """Which timesteps are visited if there are fewer than T. log_snr, karras: levels between the
    timesteps, in equal steps of log(signal/sigma), or of (sigma/signal)^(1/7)."""
    respacing: str | None = None
    """Timesteps visited, as OpenAI's programs name them: "250", "10,15,20" (counts in sections of
    equal length) or "ddim50"; in place of num_steps and spacing."""
    timesteps: str | None = None
    """The timesteps visited, descending, such as "999,850,736,645,545,455,343,233,124,24"; in place
    of num_steps and spacing."""
    variance: Literal["fixed_small", "fixed_large"] = "fixed_large"
    """Variance of the ancestral sampler: beta (fixed_large) or beta-tilde (fixed_small)."""
    eta: float = 0.0
    """Noise of the DDIM sampler: 0 is deterministic, 1 is ancestral sampling."""
    churn: float = 0.0
    """Noise that heun adds before its steps (S_churn of Karras et al. 2022): 0 is deterministic,
    num_steps * 0.41 is the most."""
    churn_min: float = 0.0
    """The lowest sigma/signal at which there is churn."""
    churn_max: float | None = None
    """The highest sigma/signal at which there is churn; None: no limit."""
    churn_noise: float = 1.0
    """Standard deviation of the noise of churn."""
    clip_x_0: bool = True
    """Clip each predicted clean image to [-1, 1]."""
    dynamic_threshold: float | None = None
    """Clip each predicted clean image to this quantile of its pixels' sizes, if that is above 1,
    and divide by it; such as 0.995. In place of clip_x_0."""
    rederive_eps: bool = True
    """Take the noise from the clipped clean image; else it stays the network's own (diffusers)."""
    frames: int = 25
    """Frames of the GIF."""
    stretch: bool = False
    """Stretch the contrast of each image to the full range, where images are not clipped."""
    guidance: float | None = None
    """Scale of classifier-free guidance: 1 is the network told the class, more goes further that
    way, 0 is the network not told; None: no guidance. Needs a run with diffusion.label-dropout."""
    guidance_interval: tuple[float, float] | None = None
    """The lowest and the highest timestep at which there is guidance; None: all."""
    guidance_rescale: float = 0.0
    """Between 0 and 1: how far each guided output is given the contrast of the one without."""


def validate_sample(
    sample: SampleConfig,
    num_timesteps: int,
    *,
    zero_terminal_snr: bool = False,
    whole_timesteps: bool = False,
    prefix: str = "--",
) -> None:
    """Raise UserError if a chain of `num_timesteps` cannot be sampled so.

    `zero_terminal_snr`: its last timestep is pure noise. `whole_timesteps`: the network has a table
    of times, and knows none in between. `prefix`: what the flags of these settings begin with.
    """
    steps = f"{prefix}{'steps' if prefix == '--' else 'num-steps'}"
    _require(sample.respacing is None or sample.timesteps is None, f"{prefix}timesteps",
             sample.timesteps, f"left out with {prefix}respacing {sample.respacing}")  # fmt: skip
    _require(sample.num_steps <= MAX_STEPS, steps, sample.num_steps, f"at most {MAX_STEPS:,}")
    if visits_timesteps(sample):
        first = _first_timestep(sample, num_timesteps, prefix, steps)
        at_noise = zero_terminal_snr and first == num_timesteps - 1
        able = SAMPLERS[sample.sampler].starts_at_noise
        _require(able or not at_noise, f"{prefix}sampler", sample.sampler,
                 "another, or begin below the last timestep (leading spacing): the run's "
                 "schedule ends in pure noise, where this one cannot start")  # fmt: skip
    else:
        spacing = f"{prefix}spacing"
        _require(sample.num_steps >= 1, steps, sample.num_steps, "at least 1")
        _require(not zero_terminal_snr, spacing, sample.spacing, "one in t, such as trailing: "
                 "the run's schedule ends in pure noise, infinite in log(sigma)")  # fmt: skip
        _require(not whole_timesteps, spacing, sample.spacing, "one in t, such as leading: the "
                 "run's network has a table of times, and knows none in between")  # fmt: skip
    frames, quantile = sample.frames, sample.dynamic_threshold
    _require(frames >= 2, f"{prefix}frames", frames, "at least 2")
    _require(frames <= MAX_FRAMES, f"{prefix}frames", frames, f"at most {MAX_FRAMES:,}")
    _require(0 <= sample.eta <= 1, f"{prefix}eta", sample.eta, "between 0 and 1")
    _require(quantile is None or 0 < quantile <= 1, f"{prefix}dynamic-threshold", quantile,
             "a quantile, above 0 and at most 1")  # fmt: skip
    _validate_churn(sample, whole_timesteps, prefix)
    _validate_guidance(sample, num_timesteps, prefix)


def _first_timestep(sample: SampleConfig, num_timesteps: int, prefix: str, steps: str) -> int:
    """The first timestep visited. Raises UserError that names the flag which says so."""
    try:
        return int(sampling_timesteps(sample, num_timesteps)[0])
    except (ValueError, TypeError, OverflowError) as error:
        flag = f"{steps} {sample.num_steps}"
        if sample.respacing is not None:
            flag = f"{prefix}respacing {sample.respacing}"
        if sample.timesteps is not None:
            flag = f"{prefix}timesteps {sample.timesteps}"
        raise UserError(f"{flag}: {error}") from error


def _validate_churn(sample: SampleConfig, whole_timesteps: bool, prefix: str) -> None:
    churn, low, high = sample.churn, sample.churn_min, sample.churn_max
    flag = f"{prefix}churn"
    _require(0 <= churn < inf, flag, churn, "0 or more")
    _require(churn == 0 or sample.sampler == "heun", flag, churn,
             f"0 with {prefix}sampler {sample.sampler}: only heun has it")  # fmt: skip
    _require(churn == 0 or not whole_timesteps, flag, churn,
             "0: the run's network has a table of times, and knows none in between")  # fmt: skip
    _require(low >= 0, f"{flag}-min", low, "0 or more")
    _require(high is None or high >= low, f"{flag}-max", high, f"at least {flag}-min {low:g}")
    _require(sample.churn_noise >= 0, f"{flag}-noise", sample.churn_noise, "0 or more")


def _validate_guidance(sample: SampleConfig, num_timesteps: int, prefix: str) -> None:
    scale, interval, rescale = sample.guidance, sample.guidance_interval, sample.guidance_rescale
    flag = f"{prefix}guidance"
    _require(scale is None or 0 <= scale < inf, flag, scale, "0 or more")
    _require(0 <= rescale <= 1, f"{flag}-rescale", rescale, "between 0 and 1")
    if scale is None:
        _require(interval is None, f"{flag}-interval", interval, f"left out without {flag}")
        _require(rescale == 0, f"{flag}-rescale", rescale, f"0 without {flag}")
    if interval is not None:
        possible = 0 <= interval[0] <= interval[1] <= num_timesteps - 1
        _require(possible, f"{flag}-interval", interval,
                 f"two timesteps between 0 and {num_timesteps - 1}, the lower first")  # fmt: skip


def sampling_timesteps(sample: SampleConfig, num_timesteps: int) -> Int[np.ndarray, " S+1"]:
    """The timesteps that are visited, descending, ending in -1.

    Raises ValueError where there is no such choice, and for levels between the timesteps.
    """
    if sample.timesteps is not None:
        return parse_timesteps(num_timesteps, sample.timesteps)
    if sample.respacing is not None:
        return space_timesteps(num_timesteps, sample.respacing)
    if sample.spacing == "log_snr" or sample.spacing == "karras":
        raise ValueError(f"{sample.spacing!r} spacing visits levels between the timesteps")
    return timestep_grid(num_timesteps, sample.num_steps, sample.spacing)


def visits_timesteps(sample: SampleConfig) -> bool:
    """Whether all levels are those of timesteps, and not of a spacing between them."""
    listed = sample.timesteps is not None or sample.respacing is not None
    return listed or sample.spacing not in CONTINUOUS
