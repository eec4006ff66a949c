"""`fit`: train on arrays, with the network of a preset or your own."""

from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dacite
import jax

from jax_ddpm import runs
from jax_ddpm.api.arrays import make_source
from jax_ddpm.api.checks import check_keywords
from jax_ddpm.api.names import name_arguments, to_arguments
from jax_ddpm.api.trained_run import TrainedRun, load_run, make_functions
from jax_ddpm.config.epochs import resolve_epochs
from jax_ddpm.config.follow import follow, remove_labels
from jax_ddpm.config.presets import find_preset
from jax_ddpm.config.run import Config, DataConfig, validate
from jax_ddpm.data.holdout import split_off
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.errors import Stopped, UserError, flag_name
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.messages import tell
from jax_ddpm.jobs.train import train_run
from jax_ddpm.models import Architecture, CustomConfig

SHORT = {"steps": "num_steps"}  # as on the command line
OWN = ("config", "network", "run", "seed", "random_flip")
LABEL_FIELDS = ("num_classes", "num_class_embeds")  # of networks that take labels


def fit(
    images: Any,
    labels: Any = None,
    *,
    config: str | Config = "fashion-cpu",
    network: Any = None,
    run: str | Path | None = None,
    seed: int | None = None,
    random_flip: bool | None = None,
    **changes: Any,
) -> TrainedRun:
    """Train on an array of images, exactly as `jax-ddpm train` does, and return the trained run.

    Examples:
        >>> import numpy as np, jax_ddpm as jd
        >>> images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
        >>> run = jd.fit(images, steps=4, batch_size=8)
        >>> run.sample(2, steps=4).shape
        (2, 8, 8, 1)

    `images` are uint8 [n, h, w, c] or [n, h, w], grey or colour; they are not cropped or resized.
    With `labels` [n], the network learns the classes.

    `config` is the name of a preset or a Config. `seed`, `random_flip` and `changes`, which are
    fields of TrainConfig and DiffusionConfig, change it; `steps` is short for num_steps. Settings
    that depend on a change, such as the warm-up, are adjusted to it. `holdout` is the fraction of
    the images that is held out for a validation loss.

    `network` replaces the preset's network. It is a configuration such as UNetConfig(channels=32),
    a Linen module, or two functions (init, apply_fn): init(key) returns params, and
    apply_fn(params, x_t, t, ...) returns an output shaped like x_t. apply_fn is given `train`,
    `dropout_keys`, `label` and `x_self_cond` only if it takes them.

    `run` is the run folder; make the same call again to resume the run. Without it, the folder is
    temporary and is removed together with the returned object. Ctrl-C stops training early and
    returns what was trained so far. Call `jd.enable_compilation_cache()` first to keep compiled
    programs for the next session.

    Raises UserError for images, settings or a network that cannot work.
    """
    with name_arguments(), jax.enable_x64(False):
        source = make_source(images, labels)
        own_changes = {"seed": seed, "random_flip": random_flip}
        changes |= {name: value for name, value in own_changes.items() if value is not None}
        chosen = change_config(config, changes)
        chosen, own = choose_network(chosen, network, source, labels is not None)
        folder, temporary = choose_folder(run or chosen.run)
        typed = {flag_name(name, "--train.") for name in changes}
        chosen = runs.adopt(replace(chosen, run=folder), typed)
        validate(chosen)
        source, held_out = split_off(source, chosen.data.holdout)
        chosen = resolve_epochs(chosen, len(source.images))
        parts, stopped = build(chosen, source.image_shape, network=own), False
        try:
            train_run(chosen, source, parts, held_out)
        except Stopped:
            stopped = True
        trained = replace(load_run(folder, network=own), temporary=temporary)
        if stopped:
            again = "" if temporary else "; call fit again to resume"
            tell(f"Stopped early, with the {trained.description}{again}")
        return trained


def change_config(config: Any, changes: dict[str, Any]) -> Config:
    """Change settings of a preset or Config: training, diffusion, random_flip and seed.

    Raises UserError for a preset or setting that does not exist, naming the nearest.
    """
    # Whether the network takes labels is decided by `labels`, not by the preset's own images.
    preset = remove_labels(find_preset(config)) if isinstance(config, str) else config
    if not isinstance(preset, Config):
        raise UserError(
            f"config is {type(config).__name__}, but it must be the name of a preset or a Config"
        )
    changes = {SHORT.get(name, name): value for name, value in changes.items()}
    sections = {
        f.name: section
        for section in ("train", "diffusion")
        for f in fields(getattr(preset, section))
    }
    sections |= {"random_flip": "data", "holdout": "data"}
    check_keywords("fit", changes, dict.fromkeys([*SHORT, *sections, *OWN]))
    changed = replace(preset, seed=changes.pop("seed", preset.seed))
    changed = replace(changed, data=copy_data(preset.data))
    for name, value in changes.items():
        section = getattr(changed, sections[name])
        changed = replace(changed, **{sections[name]: replace(section, **{name: value})})
    check_types(changed)
    typed = {flag_name(name, f"--{sections[name]}.") for name in changes}
    changed, followed = follow(changed, preset, typed)
    for setting in followed:
        name = to_arguments(setting.flag)
        tell(f"{name} is {setting.value} (the preset has {setting.preset})")
    return changed


def choose_folder(folder: str | Path | None) -> tuple[Path, TemporaryDirectory[str] | None]:
    """The run folder; without one, a temporary folder and the object that removes it."""
    if folder is not None:
        return Path(folder), None
    temporary = TemporaryDirectory(prefix="jax_ddpm_")
    return Path(temporary.name), temporary


def copy_data(data: DataConfig) -> DataConfig:
    """The settings for arrays: those of `data` that do not say where the images come from."""
    return DataConfig("arrays", random_flip=data.random_flip, holdout=data.holdout)


def choose_network(
    config: Config, network: Any, source: ImageSource, with_labels: bool
) -> tuple[Config, Any]:
    """Put `network` into `config`. Also returns its functions if `config` cannot describe it."""
    own = None
    if isinstance(network, Architecture):
        config = replace(config, model=network)
    elif network is not None:
        own = make_functions(network, source.image_shape)
        custom = config.model if isinstance(config.model, CustomConfig) else CustomConfig()
        config = replace(config, model=custom)
    return set_classes(config, source, with_labels), own


def set_classes(config: Config, source: ImageSource, with_labels: bool) -> Config:
    """Set the number of classes of the network in `config` from `source`, if labels were given.

    Raises UserError for labels that the network does not take, and for labels that are missing.
    """
    known, name = config.model.num_labels, type(config.model).__name__
    if with_labels == (known is not None):
        return config
    if known is not None:
        raise UserError(
            f"{name} has {known} classes, but no labels were given: fit(images, labels)"
        )
    count = int(source.labels.max()) + 1 + (config.diffusion.label_dropout > 0)
    for field in fields(config.model):
        if field.name in LABEL_FIELDS:
            model: Any = config.model
            return replace(config, model=replace(model, **{field.name: count}))
    raise UserError(f"{name} takes no labels: leave them out, or choose another network")


def check_types(config: Config) -> None:
    """Raise UserError for a setting of the wrong type."""
    try:
        runs.from_dict(runs.to_dict(config))
    except dacite.DaciteError as error:
        raise UserError(str(error)) from error
