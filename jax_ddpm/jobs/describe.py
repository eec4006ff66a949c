"""A dry run: what training would compute and write, without doing it."""

import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import jax

from jax_ddpm.config.epochs import resolve_epochs
from jax_ddpm.config.run import Config, DataConfig, validate
from jax_ddpm.data.summary import DataSummary, describe, summarize
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.evaluation import describe_evaluation
from jax_ddpm.jobs.validation import find_interval, open_training_data
from jax_ddpm.models import ARCHITECTURES
from jax_ddpm.runs import holds_run

WIDTH, NAME = 98, 11


def describe_run(config: Config) -> str:
    """Describe what training with `config` would do, and list every setting.

    Opens the data but writes nothing. Raises UserError if training cannot work.
    """
    validate(config)
    source, held_out = open_training_data(config)
    config = resolve_epochs(config, len(source.images))
    parts = build(config, source.image_shape)
    params = jax.eval_shape(parts.network.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    kinds = {kind: name for name, kind in ARCHITECTURES.items()}
    train, images = config.train, len(source.images)
    epochs = train.num_steps * train.batch_size / images
    exists = holds_run(config.folder)
    facts = {
        "network": f"{kinds[type(config.model)]}, {count:,} parameters",
        "training": f"{train.num_steps:,} steps of {train.batch_size} images, which is "
        f"{epochs:.3g} epochs of {images / train.batch_size:,.4g} steps",
        "folder": f"{config.folder}, {'an existing run to resume' if exists else 'a new run'}",
        "writes": f"metrics every {train.log_every} steps, a checkpoint every "
        f"{train.checkpoint_every} (the newest {train.keep_checkpoints} are kept), samples every "
        f"{train.sample_every}, and at the end samples.png, sampling.gif, loss.png and report.html",
    }
    if held_out is not None:
        count, of = min(train.validate_images, len(held_out.images)), len(held_out.images)
        facts["validation"] = (
            f"the loss of {count:,} of {of:,} held-out images every {find_interval(config)} steps"
        )
    if train.evaluate_every is not None:
        facts["evaluation"] = f"the distance of {describe_evaluation(train)}"
    lines = ["This is a dry run: nothing is computed or written.", ""]
    lines += describe_data(summarize(source), config.data)
    lines += [line for name, text in facts.items() for line in _format(name, text)]
    lines += ["", "Every setting:", *_format("run", f"preset {config.preset}, seed {config.seed}")]
    for section in ("data", "model", "diffusion", "train", "sample"):
        lines += _format(section, ", ".join(_list_settings(getattr(config, section))))
    return "\n".join(lines)


def describe_data(summary: DataSummary, data: DataConfig) -> list[str]:
    """Describe the images to train on, as the lines of a table."""
    where = data.name if data.path is None else f"{data.name} {data.path}"
    mirrored = "never (--data.random-flip turns it on)"
    if data.random_flip:
        mirrored = "left to right, half of the time (--data.no-random-flip turns it off)"
    rows = [("data", where), *describe(summary), ("mirrored", mirrored)]
    return [line for name, text in rows for line in _format(name, text)]


def _list_settings(settings: Any) -> Iterator[str]:
    for field in fields(settings):
        value = getattr(settings, field.name)
        assert not is_dataclass(value)
        shown = " ".join(map(str, value)) or "none" if isinstance(value, tuple) else value
        yield f"{field.name} {shown}"


def _format(name: str, text: str) -> list[str]:
    """Wrap `text` to lines, with `name` before the first."""
    indent = " " * (NAME + 2)
    wrapped = textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)
    return [f"  {name:{NAME}}{wrapped[0].lstrip()}", *wrapped[1:]]
