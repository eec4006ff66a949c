"""The evaluation of a training job: images drawn with its averaged weights, and their figures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jax_ddpm.config.jobs import QualityJob
from jax_ddpm.config.run import Config, TrainConfig
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.devices.processes import share_from_first
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.build import Parts
from jax_ddpm.jobs.features import (
    NAMES,
    Extractor,
    FeatureNetwork,
    choose_features,
    join_batches,
)
from jax_ddpm.jobs.generate import GenerateFn, generate_images, show_progress
from jax_ddpm.jobs.messages import tell
from jax_ddpm.jobs.quality_report import round_to
from jax_ddpm.jobs.reference import Reference, load_reference
from jax_ddpm.jobs.validation import Validated
from jax_ddpm.quality.measures import MEASURES, Figure, Figures, Sets
from jax_ddpm.training.state import TrainState

SEED = 0  # of the images, as in `jax-ddpm evaluate`, which so finds the same figures
BATCH_SIZE = 64  # as for sample grids, so that the same compiled program draws both
MEASURED = ("frechet", "kernel", "score")  # the others take too long for a pause in training


class Evaluated(NamedTuple):
    """The figures of images drawn after a step; NaN if they cannot be computed."""

    frechet: float
    kernel: float
    score: float


class Measured(NamedTuple):
    """What was measured after a step, each if it was due."""

    validated: Validated | None = None
    evaluated: Evaluated | None = None

    def list_figures(self) -> dict[str, float]:
        """All figures that are known, by their names in a row of metrics."""
        parts = [part._asdict() for part in self if part is not None]
        known = {name: value for part in parts for name, value in part.items()}
        return {name: value for name, value in known.items() if value is not None}


@dataclass
class Evaluation:
    """What a job evaluates its images with, and the last distance, for the progress bar."""

    network: FeatureNetwork
    extract: Extractor
    reference: Reference
    num_images: int
    summary: Mapping[str, str]

    @property
    def title(self) -> str:
        """The name of the distance, and how many images it is of."""
        return f"{self.network.titles['frechet']}, {self.num_images:,} images"


def choose_training_features(
    config: Config, image_shape: tuple[int, int, int]
) -> FeatureNetwork | None:
    """Choose the features to evaluate in; None if `config` asks for no evaluation.

    Raises UserError for features that cannot be had.
    """
    name, inception = config.train.evaluate_features, None
    if config.train.evaluate_every is None:
        return None
    if name is not None and name not in NAMES:
        inception = Path(name)
        if not inception.is_file():
            raise UserError(
                f"--train.evaluate-features is {name}, but it must be {', '.join(NAMES)} or the "
                "file of Inception's weights"
            )
        name = "inception"
    try:
        return choose_features(QualityJob(features=name, inception=inception), image_shape)
    except UserError as error:
        raise UserError(f"--train.evaluate-every {config.train.evaluate_every}: {error}") from error


def open_evaluation(config: Config, network: FeatureNetwork, source: ImageSource) -> Evaluation:
    """Compile the feature network, and load the features of all training images, or extract them.

    Raises UserError if there are too few images to compare with.
    """
    count = config.train.evaluate_images
    extract = Extractor(network, min(BATCH_SIZE, count))
    reference = load_reference(network, extract, config.data, "train", source)
    return Evaluation(network, extract, reference, count, {})


def describe_evaluation(train: TrainConfig, about: str = "") -> str:
    """Say how many images are evaluated, how often, and in which features."""
    features = f", {about}" if about else ""
    return f"{train.evaluate_images:,} images every {train.evaluate_every} steps{features}"


def evaluate_images(
    evaluation: Evaluation, generate: GenerateFn, parts: Parts, state: TrainState, step: int
) -> Evaluated:
    """Draw images with the averaged weights of `state`, measure them, and tell the figures.

    All processes return the figures of the first.
    """
    batches = generate_images(
        generate,
        state.ema_params,
        evaluation.num_images,
        seed=SEED,
        batch_size=BATCH_SIZE,
        num_labels=parts.num_labels,
    )
    note = f"evaluation after step {step}"
    shown = show_progress(batches, evaluation.num_images, note, leave=False)
    found = [evaluation.extract(batch.images) for batch in shown]
    drawn, reference = join_batches(found), evaluation.reference
    figures = compute_figures(Sets(*drawn, reference.statistics, reference.features))
    tell(f"Step {step}: {format_figures(figures, evaluation.network.titles)}")
    values = Evaluated(*share_from_first([figures[name].value for name in MEASURED]))
    short = "FID" if evaluation.network.titles["frechet"] == "FID" else "FD"
    evaluation.summary = {short: f"{values.frechet:.4g}"}
    return values


def compute_figures(sets: Sets) -> Figures:
    """Compute the figures of MEASURED; NaN for those that these images do not have."""
    figures: dict[str, Figure] = dict.fromkeys(MEASURED, Figure(math.nan))
    for name in MEASURED:
        try:
            figures |= MEASURES[name].compute(sets)
        except UserError as error:
            tell(f"{name} was not measured: {error}")
    return figures


def format_figures(figures: Figures, titles: Mapping[str, Any]) -> str:
    """The figures in one line, each with its range."""

    def show(name: str, figure: Figure) -> str:
        margin = "" if figure.margin is None else f" +- {round_to(figure.margin, figure.margin)}"
        return f"{titles.get(name, name)} {round_to(figure.value, figure.margin)}{margin}"

    return ", ".join(show(name, figure) for name, figure in figures.items())
