"""The validation loss of a training job: its images, its program, and what it says."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jax_ddpm.config.run import Config, DataConfig
from jax_ddpm.data.holdout import select, split_off
from jax_ddpm.data.loader import require_labels
from jax_ddpm.data.sources import SOURCES, ImageSource, has_test_part, recognize
from jax_ddpm.devices.per_example import compile_per_example, round_up
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.build import Parts, open_data
from jax_ddpm.jobs.messages import announce_compilation, tell
from jax_ddpm.optim.averages import Params
from jax_ddpm.process.losses import LossFn
from jax_ddpm.training.state import TrainState
from jax_ddpm.training.validation import Examples, make_validation_loss, spread_timesteps

TEST = "test"  # the value of --data.validation that means the data's own test images
# A gap counts as open if it exceeds three standard errors and 5 % of the loss.
SURE, LARGE = 3.0, 0.05


class Validated(NamedTuple):
    """The validation losses after a step; NaN if they are not finite."""

    validation_loss: float
    """Of the held-out images, with the averaged weights."""
    validation_loss_raw: float | None
    """Of the held-out images, with the raw weights; None for a run without an average."""
    trained_loss: float
    """Of as many training images, with the averaged weights, the same noise and timesteps."""


@dataclass
class Validation:
    """What a job validates with, and whether it has said that the gap to training is open."""

    held_out: Examples
    trained: Examples
    losses_of: Callable[..., Any]
    """The compiled program: (params, examples) -> losses [b]."""
    batch_size: int
    has_average: bool
    gap_is_told: bool = False


def open_training_data(config: Config) -> tuple[ImageSource, ImageSource | None]:
    """Open the images to train on, and those to validate with, if `config` asks for any.

    Raises UserError if they cannot be opened or differ in size.
    """
    data = config.data
    source = open_data(replace(data, holdout=0.0))
    if data.validation is None:
        return split_off(source, data.holdout)
    return source, check_validation(open_validation(data), source, config)


def open_validation(data: DataConfig) -> ImageSource:
    """Open the images of data.validation. Raises UserError if there are none."""
    if data.validation != TEST:
        path = Path(str(data.validation))
        if not path.exists():
            raise UserError(
                f"--data.validation is {path}, but it must be test or the path of images: there is "
                f"no {path}"
            )
        found = None if data.path is not None else recognize(path)
        return open_data(replace(data, name=found or data.name, path=path, validation=None))
    if data.name in SOURCES and not has_test_part(data.name, data.path):
        raise UserError(
            f"--data.validation test: --data.name {data.name} has no images set aside for tests, "
            "so use --data.holdout 0.05, or give the path of other images"
        )
    return open_data(data, "test")


def check_validation(found: ImageSource, source: ImageSource, config: Config) -> ImageSource:
    """Return the validation images, with their classes numbered as those trained on.

    Raises UserError for images of another size, and for classes that training does not have.
    """
    if found.image_shape != source.image_shape:
        one, other = ("x".join(map(str, s.image_shape)) for s in (found, source))
        raise UserError(
            f"--data.validation {config.data.validation} has images of {one}, but those trained on "
            f"are {other}: choose one size for both with --data.image-size"
        )
    names, known = found.class_names, source.class_names
    if config.model.num_labels is None or names == known or not (names and known):
        return found
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UserError(
            f"--data.validation {config.data.validation} has the class {unknown[0]}, but the "
            f"images trained on have only {', '.join(known)}"
        )
    numbers = np.array([known.index(name) for name in names], np.int32)
    return found._replace(labels=numbers[np.asarray(found.labels)], class_names=known)


def make_validation(
    config: Config, parts: Parts, loss_fn: LossFn, source: ImageSource, held_out: ImageSource
) -> Validation:
    """Take train.validate_images images from both sources, and make the compiled program.

    Raises UserError for labels that the network does not have.
    """
    require_labels(held_out, parts.num_labels, parts.null_label)
    train = config.train
    count = min(train.validate_images, len(held_out.images), len(source.images))
    program = make_validation_loss(
        loss_fn,
        offset_noise=config.diffusion.offset_noise,
        self_condition=parts.self_condition,
        class_conditional=parts.num_labels is not None,
    )
    return Validation(
        make_examples(held_out, count, parts),
        make_examples(source, count, parts),
        announce_compilation(compile_per_example(program), "the validation loss"),
        min(count, train.batch_size // train.accumulate),
        has_average=train.ema_form == "half_life" or train.ema_decay > 0,
    )


def make_examples(source: ImageSource, count: int, parts: Parts) -> Examples:
    """Take `count` images, spread evenly over `source`, with their timesteps and numbers."""
    chosen = select(source, np.arange(count) * len(source.images) // count)
    pixels = np.stack([chosen.images[i] for i in range(count)])
    labels = None
    if parts.num_labels is not None:
        labels = np.array([chosen.labels[i] for i in range(count)], np.int32)
    t = spread_timesteps(count, parts.schedule.num_timesteps)
    return pixels, labels, t, np.arange(count, dtype=np.int32)


def describe_validation(validation: Validation, config: Config) -> str:
    """Say how many images are validated, how often, and with which weights."""
    count, weights = len(validation.held_out[0]), "averaged and raw weights"
    if not validation.has_average:
        weights = "raw weights"
    kind = "held-out images" if config.data.holdout else f"images of {config.data.validation}"
    return f"Validation loss: {count:,} {kind}, every {find_interval(config)} steps, {weights}"


def find_interval(config: Config) -> int | None:
    """The number of steps between two validation losses; None for a run without any."""
    if not config.data.holdout and config.data.validation is None:
        return None
    return config.train.validate_every or config.train.checkpoint_every


def measure(validation: Validation, state: TrainState, step: int) -> Validated:
    """Measure the losses of `state`, and tell if held-out images now have a larger one."""
    held_out = measure_losses(validation, state.ema_params, validation.held_out)
    trained = measure_losses(validation, state.ema_params, validation.trained)
    raw = None
    if validation.has_average:
        raw = average(measure_losses(validation, state.params, validation.held_out))
    found = Validated(average(held_out), raw, average(trained))
    is_open = has_gap(held_out, trained)
    if is_open and not validation.gap_is_told:
        tell(
            f"Step {step}: the loss of held-out images, {found.validation_loss:.4g}, is "
            f"{found.validation_loss / found.trained_loss - 1:.0%} above that of training images, "
            f"{found.trained_loss:.4g}: the network has begun to memorise"
        )
    validation.gap_is_told = is_open
    return found


def measure_losses(
    validation: Validation, params: Params, examples: Examples
) -> Float[np.ndarray, " n"]:
    """Measure the loss of each image, in batches of one size."""
    count, done = len(examples[0]), []
    size = round_up(validation.batch_size, params)
    for first in range(0, count, size):
        indices = np.minimum(first + np.arange(size), count - 1)  # repeats fill the last batch
        batch = [None if part is None else jnp.asarray(part[indices]) for part in examples]
        losses = validation.losses_of(params, tuple(batch))
        done.append(np.asarray(losses, np.float64)[: count - first])
    return np.concatenate(done)


def average(losses: Float[np.ndarray, " n"]) -> float:
    """The mean of `losses`; NaN unless it is finite."""
    mean = float(losses.mean())
    return mean if math.isfinite(mean) else math.nan


def has_gap(held_out: Float[np.ndarray, " n"], trained: Float[np.ndarray, " n"]) -> bool:
    """Whether held-out images have a loss that is larger, by more than chance and by a few percent.

    Image i has the same noise and timestep in both arrays, so the differences vary little.
    """
    difference = held_out - trained
    if len(difference) < 2 or not np.isfinite(difference).all():
        return False
    error = difference.std(ddof=1) / math.sqrt(len(difference))
    return bool(difference.mean() > max(SURE * error, LARGE * abs(trained.mean())))
