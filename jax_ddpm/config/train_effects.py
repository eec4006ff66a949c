"""Refuse training settings that the user gave but that would change nothing."""

from collections.abc import Callable, Collection
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from jax_ddpm.config.run import Config
from jax_ddpm.errors import UserError, flag_name


class Rule(NamedTuple):
    """When some settings have an effect, and what the user must add for that."""

    names: tuple[str, ...]
    """Dotted names of the settings."""
    have_effect: Callable[[Config], object]
    needs: str


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
    Rule(
        ("diffusion.min_snr_gamma",),
        lambda c: c.diffusion.weighting in ("min_snr", "soft_min_snr"),
        "--diffusion.weighting min_snr or soft_min_snr",
    ),
    Rule(
        ("diffusion.p2_gamma", "diffusion.p2_k"),
        lambda c: c.diffusion.weighting == "p2",
        "--diffusion.weighting p2",
    ),
    Rule(
        ("diffusion.log_normal_mean", "diffusion.log_normal_std"),
        lambda c: c.diffusion.timestep_sampling == "log_normal",
        "--diffusion.timestep-sampling log_normal",
    ),
    Rule(
        ("diffusion.vb_weight",),
        lambda c: c.diffusion.objective != "simple",
        "--diffusion.objective hybrid or vlb",
    ),
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
    Rule(
        ("train.ema_update_after",),
        lambda c: c.train.ema_form in ("power", "delayed_ramp"),
        "--train.ema-form power or delayed_ramp",
    ),
    Rule(
        ("train.ema_power", "train.ema_inv_gamma"),
        lambda c: c.train.ema_form == "power",
        "--train.ema-form power",
    ),
    Rule(
        ("train.ema_half_life", "train.ema_rampup"),
        lambda c: c.train.ema_form == "half_life",
        "--train.ema-form half_life",
    ),
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
            flag, (section, field) = flag_name(name), name.split(".")
            value = getattr(getattr(config, section), field)
            idle = not rule.have_effect(config) and value != _usual(config, section, field)
            if flag in typed and idle:
                raise UserError(f"{flag} {value} has no effect here: it needs {rule.needs}")


def _usual(config: Config, section: str, name: str) -> Any:
    """The value that a setting has if nobody sets it."""
    found = next(field for field in fields(getattr(config, section)) if field.name == name)
    return None if found.default is MISSING else found.default
