"""Fit a preset's dependent settings to the user's changes: warm-up, intervals, kind of data.

A setting is adjusted only if the user did not type it and the preset's value can no longer work.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields, replace
from math import gcd, isqrt
from typing import Any, NamedTuple

from jax_ddpm.config.run import Config, DataConfig, DiffusionConfig
from jax_ddpm.config.sample import SampleConfig, sampling_timesteps, visits_timesteps
from jax_ddpm.config.train import AT_LEAST_ONE, TrainConfig
from jax_ddpm.data.sources import recognize
from jax_ddpm.errors import flag_name
from jax_ddpm.models import UNetConfig

FASHION_MNIST = ("embedded", "fashion_mnist")


class Followed(NamedTuple):
    """A setting of the preset that was adjusted to the user's changes."""

    flag: str
    value: Any
    preset: Any
    """The preset's own value."""


def follow(config: Config, preset: Config, typed: Collection[str]) -> tuple[Config, list[Followed]]:
    """Adjust `config` to what the user typed. Returns the new settings and a list of the changes.

    `typed` holds complete flags, such as "--train.num-steps"; all other values of `config` equal
    those in `preset`. Typed values that conflict are left for `validate` to refuse.
    """
    diffusion = _follow_betas(config.diffusion, typed)
    train, timesteps = config.train, diffusion.num_timesteps
    sizes = [timesteps, *(getattr(train, name) for name in AT_LEAST_ONE)]
    if any(size is not None and size < 1 for size in sizes):
        return config, []
    if "--train.num-steps" in typed and "--train.num-epochs" not in typed:
        train = replace(train, num_epochs=None)
        config = replace(config, train=train)  # not worth a line
    train = _follow_num_steps(train, preset.train, typed)
    train = _follow_batch_size(train, typed)
    train = _follow_log_every(train, typed)
    train = _follow_intervals(train, typed)
    sample, model = _follow_timesteps(config.sample, timesteps, preset, typed), config.model
    rows = model.num_timesteps
    if rows is not None and rows < timesteps and "--model.n-steps" not in typed:
        model = replace(model, n_steps=timesteps)  # type: ignore[call-arg]  # PulferConfig
    data = _follow_path(config.data, typed)
    followed = replace(
        config, data=data, model=model, diffusion=diffusion, train=train, sample=sample
    )
    followed = _follow_labels(followed, preset, typed)
    return followed, list(_list_changes(config, followed))


def _follow_path(data: DataConfig, typed: Collection[str]) -> DataConfig:
    """Choose the kind of data that a typed path holds, if the preset's images have no path."""
    if data.path is None or data.name != "embedded" or "--data.name" in typed:
        return data
    return replace(data, name=recognize(data.path) or data.name)


def _follow_labels(config: Config, preset: Config, typed: Collection[str]) -> Config:
    """Leave out the labels of a preset for the embedded images if the images are others.

    Other images may have no labels, or other classes.
    """
    flags = ("--model.num-classes", "--diffusion.label-dropout")
    embedded = preset.data.name == "embedded"
    if not embedded or config.data.name in FASHION_MNIST or any(flag in typed for flag in flags):
        return config
    return remove_labels(config)


def remove_labels(config: Config) -> Config:
    """Take the labels out of a configuration, if its network is Ho et al.'s."""
    if not isinstance(config.model, UNetConfig) or config.model.num_classes is None:
        return config
    model = replace(config.model, num_classes=None)
    diffusion = replace(config.diffusion, label_dropout=0.0)
    return replace(config, model=model, diffusion=diffusion)


def _follow_num_steps(
    train: TrainConfig, preset: TrainConfig, typed: Collection[str]
) -> TrainConfig:
    """Scale a warm-up that is longer than the run to its share of the preset's run."""
    if train.warmup_steps <= train.num_steps or "--train.warmup-steps" in typed:
        return train
    warmup_steps = round(train.warmup_steps * train.num_steps / preset.num_steps)
    return replace(train, warmup_steps=warmup_steps)


def _follow_batch_size(train: TrainConfig, typed: Collection[str]) -> TrainConfig:
    """Cut the batch into the largest number of equal parts that the preset's number allows."""
    if train.batch_size % train.accumulate == 0 or "--train.accumulate" in typed:
        return train
    parts = [n for n in find_divisors(train.batch_size) if n <= train.accumulate]
    return replace(train, accumulate=max(parts))


def _follow_log_every(train: TrainConfig, typed: Collection[str]) -> TrainConfig:
    """Log at the nearest interval that fits steps_per_call and the intervals that were typed."""
    if "--train.log-every" in typed:
        return train
    names = [*_intervals(train), "keep_every", "validate_every", "evaluate_every"]
    fixed = [getattr(train, name) for name in names if flag_name(name, "--train.") in typed]
    fixed = [steps for steps in fixed if steps is not None]
    log, calls = train.log_every, train.steps_per_call
    most = max(calls, train.num_steps if train.posthoc_ema else log)
    if log % calls == 0 and log <= most and all(steps % log == 0 for steps in fixed):
        return train
    if fixed:
        possible = [steps for steps in find_divisors(gcd(*fixed)) if steps % calls == 0]
    else:
        possible = [calls * max(1, min(round(log / calls), most // calls))]
    return replace(train, log_every=find_nearest(log, possible)) if possible else train


def _follow_intervals(train: TrainConfig, typed: Collection[str]) -> TrainConfig:
    """Move checkpoints, image grids and snapshots to the nearest multiple of log_every."""
    log, most = train.log_every, max(train.num_steps // train.log_every, 1)
    for name in _intervals(train):
        steps = getattr(train, name)
        late = name == "snapshot_every" and steps > train.num_steps
        if flag_name(name, "--train.") not in typed and (steps % log or late):
            train = replace(train, **{name: log * max(1, min(round(steps / log), most))})
    kept = train.keep_every
    if kept is None or kept % train.checkpoint_every == 0 or "--train.checkpoint-every" in typed:
        return train
    possible = [steps for steps in find_divisors(kept) if steps % log == 0]
    nearest = find_nearest(train.checkpoint_every, possible or [train.checkpoint_every])
    return replace(train, checkpoint_every=nearest)


def _intervals(train: TrainConfig) -> Sequence[str]:
    """The intervals that must be multiples of log_every."""
    snapshots = ("snapshot_every",) if train.posthoc_ema else ()
    return ("checkpoint_every", "sample_every", *snapshots)


def _follow_betas(diffusion: DiffusionConfig, typed: Collection[str]) -> DiffusionConfig:
    """Make T the number of betas that were typed."""
    if diffusion.betas is None or "--diffusion.num-timesteps" in typed:
        return diffusion
    return replace(diffusion, num_timesteps=len(diffusion.betas))


def _follow_timesteps(
    sample: SampleConfig, num_timesteps: int, preset: Config, typed: Collection[str]
) -> SampleConfig:
    """Lower the number of sampling steps to T if it is larger.

    Also raise it to T if the preset samples in all its timesteps.
    """
    if sample.respacing is not None and "--sample.respacing" not in typed:
        try:
            sampling_timesteps(sample, num_timesteps)
        except ValueError:
            return replace(sample, respacing=str(num_timesteps))
    free = "--sample.num-steps" not in typed and visits_timesteps(sample)
    takes_all = preset.sample.num_steps == preset.diffusion.num_timesteps
    if free and (sample.num_steps > num_timesteps or takes_all):
        return replace(sample, num_steps=num_timesteps)
    return sample


def _list_changes(before: Config, after: Config) -> Iterator[Followed]:
    for section in ("data", "model", "diffusion", "train", "sample"):
        old, new = getattr(before, section), getattr(after, section)
        for field in fields(old):
            preset, value = getattr(old, field.name), getattr(new, field.name)
            if preset != value:
                yield Followed(flag_name(field.name, f"--{section}."), value, preset)


def find_divisors(number: int) -> list[int]:
    """List all divisors, in ascending order."""
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return [*small, *(number // n for n in reversed(small) if n * n != number)]


def find_nearest(wanted: int, possible: Sequence[int]) -> int:
    """The one of `possible` that is nearest to `wanted`."""
    return min(possible, key=lambda steps: abs(steps - wanted))
