"""Refuse training settings that the user gave but that would change nothing."""

from collections.abc import Callable, Collection
from operator import attrgetter
from typing import Any, NamedTuple

from jax_ddpm.config.effects import show_flag
from jax_ddpm.config.run import Config
from jax_ddpm.errors import UserError, flag_name, join_or


class Rule(NamedTuple):
    """When some settings have an effect, and what the user must add for that."""

    names: tuple[str, ...]
    """Dotted names of the settings."""
    have_effect: Callable[[Config], object]
    needs: str


def _only_with(setting: str, values: tuple[str, ...], *names: str) -> Rule:
    """The rule for settings that have an effect only with one of the `values` of a `setting`."""
    needs = f"{flag_name(setting)} {join_or(list(values))}"
    return Rule(names, lambda config: _get(config, setting) in values, needs)


RULES = (
    Rule(
        ("data.crop", "data.resize"),
        lambda c: c.data.image_size is not None,
        "--data.image-size",
    ),
    Rule(
        ("data.skip_bad", "data.follow_links"),
        lambda c: c.data.name not in ("embedded", "idx", "fashion_mnist", "arrays", "parquet"),
        "--data.name folder",
    ),
    _only_with("diffusion.weighting", ("min_snr", "soft_min_snr"), "diffusion.min_snr_gamma"),
    _only_with("diffusion.weighting", ("p2",), "diffusion.p2_gamma", "diffusion.p2_k"),
    _only_with(
        "diffusion.timestep_sampling",
        ("log_normal",),
        "diffusion.log_normal_mean",
        "diffusion.log_normal_std",
    ),
    _only_with("diffusion.objective", ("hybrid", "vlb"), "diffusion.vb_weight"),
    Rule(
        ("diffusion.schedule",),
        lambda c: c.diffusion.betas is None,
        "--diffusion.betas to be left out, because they replace the schedule",
    ),
    Rule(
        ("train.num_steps", "train.log_every", "train.sample_every", "train.checkpoint_every"),
        lambda c: c.train.num_epochs is None,
        "--train.num-steps instead of epochs (a grid and a checkpoint are made after each epoch)",
    ),
    _only_with("train.ema_form", ("power", "delayed_ramp"), "train.ema_update_after"),
    _only_with("train.ema_form", ("power",), "train.ema_power", "train.ema_inv_gamma"),
    _only_with("train.ema_form", ("half_life",), "train.ema_half_life", "train.ema_rampup"),
    Rule(
        ("train.ema_decay",),
        lambda c: c.train.ema_form != "half_life",
        "--train.ema-form other than half_life",
    ),
    Rule(("train.clip_eps",), lambda c: c.train.max_grad_norm is not None, "--train.max-grad-norm"),
    Rule(("train.snapshot_every",), lambda c: c.train.posthoc_ema, "--train.posthoc-ema"),
    Rule(
        ("train.validate_images",),
        lambda c: c.data.holdout > 0 or c.data.validation is not None,
        "--data.holdout or --data.validation",
    ),
    Rule(("train.evaluate_images",), lambda c: c.train.evaluate_every, "--train.evaluate-every"),
)


def require_effects(config: Config, typed: Collection[str]) -> None:
    """Raise UserError for a setting in `typed` that has no effect on a run of `config`.

    `typed` holds complete flags. A setting at its usual value asks for nothing.
    """
    for rule in RULES:
        for name in rule.names:
            value = _get(config, name)
            idle = not rule.have_effect(config) and value != _find_usual(config, name)
            if flag_name(name) in typed and idle:
                flag = show_flag(name, value)
                raise UserError(f"{flag} has no effect here: it needs {rule.needs}")


def _get(config: Config, name: str) -> Any:
    """The value of a setting by its dotted name."""
    return attrgetter(name)(config)


def _find_usual(config: Config, name: str) -> Any:
    """The value that a setting has if nobody sets it."""
    section, _, field = name.partition(".")
    return getattr(type(getattr(config, section)), field, None)
