"""Refuse sampling settings that the user gave but that would change nothing."""

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any, NamedTuple

import numpy as np

from jax_ddpm.config.sample import SampleConfig
from jax_ddpm.errors import UserError, flag_name, join_or
from jax_ddpm.process.grids import LARGE_SIGMA
from jax_ddpm.process.levels import Level
from jax_ddpm.samplers import SAMPLERS

# Values that ask for nothing, so nobody misses their effect.
NEUTRAL = {"eta": 0.0, "churn": 0.0, "rederive_eps": True, "clip_x_0": True}


class Circumstances(NamedTuple):
    """What else decides whether a setting has an effect."""

    levels: Level
    """The S + 1 noise levels that are visited."""
    learned_variance: bool = False
    """Whether the network predicts the variance."""


def require_effects(
    sample: SampleConfig, changes: Mapping[str, Any], circumstances: Circumstances
) -> None:
    """Raise UserError if one of the user's `changes` to `sample` has no effect there.

    `changes` has been applied already.
    """
    idle = [*_list_unused(sample), *_list_idle(sample, circumstances)]
    for name, reason in idle:
        value = changes.get(name)
        if value is not None and value != NEUTRAL.get(name):
            raise UserError(f"{show_flag(name, value)} has no effect {reason}")


def require_no_frames(changes: Mapping[str, Any], instead: str) -> None:
    """Raise UserError if the user chose a number of frames although no GIF is drawn."""
    for name in ("frames", "frames_of"):
        if name in changes:
            flag = flag_name(name)
            raise UserError(f"{flag} {changes[name]} has no effect without a GIF: {instead}")


def show_flag(name: str, value: Any) -> str:
    """The flag of a setting, such as "data.skip_bad", as the user may have typed it."""
    flag = flag_name(name)
    if isinstance(value, bool):
        section, dot, last = flag.removeprefix("--").rpartition(".")
        return flag if value else f"--{section}{dot}no-{last}"
    values = value if isinstance(value, tuple | list) else (value,)
    return " ".join([flag, *map(str, values)])


def _list_unused(sample: SampleConfig) -> Iterator[tuple[str, str]]:
    """The settings of other samplers, and why they have no effect."""
    of_some = dict.fromkeys(name for entry in SAMPLERS.values() for name in entry.uses)
    for name in of_some:
        users = [known for known, entry in SAMPLERS.items() if name in entry.uses]
        if sample.sampler not in users:
            yield name, f"with --sampler {sample.sampler}: it is for {join_or(users)}"


def _list_idle(sample: SampleConfig, circumstances: Circumstances) -> Iterator[tuple[str, str]]:
    """The settings that other settings make idle, and why."""
    levels = circumstances.levels
    most = inf if sample.churn_max is None else sample.churn_max
    if circumstances.learned_variance:
        yield "variance", "because this run's network predicts the variance"
    if sample.churn == 0:
        for name in ("churn_min", "churn_max", "churn_noise"):
            yield name, "without --churn"
    elif not _any_within(_to_s(levels), sample.churn_min, min(most, LARGE_SIGMA)):
        yield "churn", "because no step starts at a sigma/signal to which it is limited"
    if sample.dynamic_threshold is not None:
        yield "clip_x_0", "with --dynamic-threshold, which takes the place of clipping"
    elif not sample.clip_x_0:
        yield "rederive_eps", "where x_0 is not clipped"
    if sample.guidance == 1:
        for name in ("guidance_interval", "guidance_rescale"):
            yield name, "with --guidance 1, the class-conditional network itself"
    elif _misses_interval(sample, levels):
        yield "guidance", "because no visited timestep is within --guidance-interval"
        yield "guidance_interval", "because it contains none of the visited timesteps"


def _misses_interval(sample: SampleConfig, levels: Level) -> bool:
    """Whether the network is evaluated nowhere in the interval of guidance."""
    interval = sample.guidance_interval
    between = SAMPLERS[sample.sampler].looks_between or sample.sampler == "pndm" or sample.churn > 0
    if interval is None or between:
        return False
    return not _any_within(np.asarray(levels.t[:-1]), *interval)


def _to_s(levels: Level) -> Any:
    """sigma / signal of all levels but the clean image; infinite for pure noise."""
    sigma, signal = np.asarray(levels.sigma[:-1]), np.asarray(levels.signal[:-1])
    return np.divide(sigma, signal, out=np.full_like(sigma, np.inf), where=signal > 0)


def _any_within(values: Any, low: float, high: float) -> bool:
    return bool(np.any((low <= values) & (values <= high)))
