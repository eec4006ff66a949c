"""The quality job: draw images from a run and measure how good they are."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_ddpm import runs
from jax_ddpm.config.effects import require_no_frames
from jax_ddpm.config.jobs import EMA, QualityJob, Weights
from jax_ddpm.config.run import validate_sampling, validate_seed
from jax_ddpm.config.sample import SampleConfig, change_settings, describe_low_start
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.devices.per_example import replicate_params
from jax_ddpm.devices.processes import is_main_process
from jax_ddpm.errors import UserError, flag_name, require, require_suffix
from jax_ddpm.files.atomic import require_writable
from jax_ddpm.files.images import Pixels, make_image_grid, save_png
from jax_ddpm.files.statistics import write_statistics
from jax_ddpm.jobs.baseline import load_baseline
from jax_ddpm.jobs.build import Parts, build, check_effects, list_levels, open_data
from jax_ddpm.jobs.features import (
    Extracted,
    Extractor,
    FeatureNetwork,
    choose_features,
    join_batches,
)
from jax_ddpm.jobs.generate import (
    GenerateFn,
    Samples,
    generate_images,
    make_generate_fn,
    show_progress,
)
from jax_ddpm.jobs.messages import announce_compilation, tell, tell_if_slow
from jax_ddpm.jobs.parameters import check_weights, load_params
from jax_ddpm.jobs.quality_report import Row, compare_reports, read_report, write_report
from jax_ddpm.jobs.reference import Reference, load_reference, read_images, read_reference
from jax_ddpm.quality.manifolds import Neighbours, find_nearest
from jax_ddpm.quality.measures import MEASURES, NUM_SPLITS, Figures, MeasureName, Sets

NUM_SUSPECTS, NUM_NEIGHBOURS = 12, 4  # rows and columns of the sheet of nearest images


class Drawn(NamedTuple):
    """Images from one set of parameters, with their features."""

    images: Pixels
    found: Extracted


def evaluate_quality(
    folder: Path,
    job: QualityJob,
    changes: Mapping[str, Any] | None = None,
    weights: Weights = EMA,
) -> Path:
    """Draw images from a run, measure them, write JSON and pictures, and return the JSON file.

    `changes` are sampling settings that differ from the run's. Raises UserError for a folder that
    is not a trained run, and for settings that cannot work.
    """
    out = job.out or folder / "evaluation" / "quality.json"
    check_job(job, out)
    require_effects(job, weights)
    other = None if job.against is None else read_report(job.against)
    run = runs.load(folder)
    check_weights(run.config, weights)
    settings = choose_settings(run, changes or {})
    network = choose_features(job, run.image_shape)
    measures = choose_measures(job, network)
    source = open_source_of(run, job)
    measures = drop_unmeasurable(measures, job, source)
    if is_main_process():
        require_writable(out)
    studio = open_studio(run, settings, job, network)
    every = list_weights(weights, job)
    loaded = [load_params(run, studio.parts, chosen) for chosen in every]
    tell_plan(studio, job, source, loaded[0][0])
    reference = open_reference(job, studio, run, source)
    rows = []
    for params, description in loaded:
        drawn = draw(studio, params, description, job)
        sets = Sets(*drawn.found, reference.statistics, reference.features)
        rows.append(Row(description, measure(measures, sets)))
        if source is not None and reference.features is not None:
            nearest = find_nearest(drawn.found.features, reference.features, NUM_NEIGHBOURS - 1)
            save_neighbours(name_sheet(out, len(rows)), drawn.images, source, nearest)
    baseline = measure_baseline(measures, job, studio, run, reference)
    if is_main_process():
        if job.write_reference is not None:
            write_statistics(job.write_reference, reference.statistics)
        about = describe(run, job, settings, studio, reference)
        report = write_report(out, about, network.titles, rows, baseline)
        if other is not None:
            compare_reports(report, other)
    return out


def choose_settings(run: runs.Run, changes: Mapping[str, Any]) -> SampleConfig:
    """The run's settings with `changes`. Raises UserError for any that cannot work."""
    settings = change_settings(run.config.sample, changes)
    validate_sampling(settings, run.config)
    require_no_frames(changes, "evaluate draws none")
    check_effects(run.config, settings, changes)
    return settings


def check_job(job: QualityJob, out: Path) -> None:
    """Raise UserError for numbers and files that cannot work."""
    for name, least in (("num", 2 * NUM_SPLITS), ("batch_size", 1)):
        value = getattr(job, name)
        require(value >= least, flag_name(name), value, f"at least {least}")
    validate_seed(job.seed)
    require_suffix(out, ".json")
    if job.write_reference is not None:
        require_suffix(job.write_reference, ".npz", "--write-reference")


def require_effects(job: QualityJob, weights: Weights) -> None:
    """Raise UserError for settings that would change nothing."""
    if job.reference is not None and job.split != "train":
        raise UserError(
            f"--split {job.split} has no effect with --reference {job.reference}, which takes the "
            "place of the run's images"
        )
    if job.raw_too and weights.weights == "raw":
        raise UserError("--raw-too has no effect with --weights raw: these are measured anyway")


def choose_measures(job: QualityJob, network: FeatureNetwork) -> list[MeasureName]:
    """The measures that `job` names; by default all that the features and the reference allow.

    Raises UserError for a measure that they do not allow.
    """
    possible = [
        name
        for name, measure in MEASURES.items()
        if (network.has_logits or not measure.needs_logits)
        and (job.reference is None or not measure.needs_images)
    ]
    for name in job.measures:
        if name not in possible:
            lack = "images, not only statistics" if MEASURES[name].needs_images else "classes"
            raise UserError(f"--measures {name} needs {lack}: choose among {', '.join(possible)}")
    return list(job.measures) or possible


def drop_unmeasurable(
    names: list[MeasureName], job: QualityJob, source: ImageSource | None
) -> list[MeasureName]:
    """Leave out the measures that need more images than `source` has, and say so.

    Raises UserError for such a measure if `job` names it, and if no measure remains.
    """
    if source is None:
        return names
    count = len(source.images)
    needed = {name: max(2, MEASURES[name].needs_images) for name in names}
    dropped = [name for name in names if needed[name] > count]
    for name in dropped:
        sentence = f"{name} needs at least {needed[name]} images to compare with, not {count}"
        if name in job.measures or len(dropped) == len(names):
            raise UserError(f"--measures {sentence}")
        tell(f"{sentence}: it is left out")
    return [name for name in names if name not in dropped]


def open_source_of(run: runs.Run, job: QualityJob) -> ImageSource | None:
    """Open the run's images, unless a file of statistics replaces them."""
    if job.reference is not None:
        return None
    with tell_if_slow("Opening the images"):
        source = open_data(run.config.data, job.split)
    if source.image_shape != run.image_shape:
        raise UserError(
            f"the data has images of {source.image_shape}, but {run.folder} was trained on "
            f"{run.image_shape}"
        )
    return source


@dataclass(frozen=True)
class Studio:
    """The compiled programs that draw images and extract their features."""

    parts: Parts
    settings: SampleConfig
    generate: GenerateFn
    extract: Extractor
    network: FeatureNetwork
    num_steps: int


def open_studio(
    run: runs.Run, settings: SampleConfig, job: QualityJob, network: FeatureNetwork
) -> Studio:
    """Build the programs; they compile when they are first called."""
    parts = build(run.config, run.image_shape)
    # The frames on the way to the images are not needed.
    generate = make_generate_fn(parts, replace(settings, frames=2), run.image_shape)
    num_steps = len(list_levels(parts, settings).t) - 1
    extract = Extractor(network, min(job.batch_size, job.num))
    return Studio(
        parts, settings, announce_compilation(generate, "the sampler"), extract, network, num_steps
    )


def list_weights(weights: Weights, job: QualityJob) -> list[Weights]:
    """The parameters to evaluate: those chosen, and with --raw-too the raw ones."""
    raw = replace(weights, weights="raw", posthoc_ema=None, posthoc_step=None)
    return [weights, raw] if job.raw_too and raw != weights else [weights]


def tell_plan(studio: Studio, job: QualityJob, source: ImageSource | None, params: Any) -> None:
    """Compile both programs, time one batch, and say what will be done and how long it takes."""
    size = min(job.batch_size, job.num)

    def draw_batch() -> Pixels:
        return next(draw_batches(studio, params, job, size)).images

    images, per_drawn = time_again(draw_batch, size)
    _, per_image = time_again(lambda: studio.extract(images), size)
    count = job.num * (2 if job.raw_too else 1)
    to_extract = count + (0 if source is None else len(source.images))
    minutes = (count * per_drawn + to_extract * per_image) / 60
    tell(
        f"{job.num:,} images with {studio.settings.sampler} in {studio.num_steps} steps, "
        f"{studio.network.about}: about {format_minutes(minutes)}"
    )
    if low := describe_low_start(studio.settings, studio.parts.schedule.num_timesteps):
        tell(f"Note: {low}")


def time_again(work: Callable[[], Any], num_images: int) -> tuple[Any, float]:
    """Do `work` twice, and time the second time, which does not compile, in seconds per image."""
    result = work()
    start = time.monotonic()
    work()
    return result, (time.monotonic() - start) / num_images


def format_minutes(minutes: float) -> str:
    """A duration as people say it."""
    return f"{60 * minutes:.0f} s" if minutes < 1 else f"{minutes:.1f} minutes"


def draw_batches(studio: Studio, params: Any, job: QualityJob, num: int) -> Iterator[Samples]:
    """Yield the first `num` images of the seed in batches; without a label, all classes in turn."""
    return generate_images(
        studio.generate,
        replicate_params(params, min(job.batch_size, num)),
        num,
        seed=job.seed,
        batch_size=job.batch_size,
        num_labels=studio.parts.num_labels,
    )


def draw(studio: Studio, params: Any, description: str, job: QualityJob) -> Drawn:
    """Draw the images and extract their features, with a progress bar."""
    images, found = [], []
    batches = draw_batches(studio, params, job, job.num)
    for batch in show_progress(batches, job.num, description):
        images.append(batch.images)
        found.append(studio.extract(batch.images))
    return Drawn(np.concatenate(images), join_batches(found))


def open_reference(
    job: QualityJob, studio: Studio, run: runs.Run, source: ImageSource | None
) -> Reference:
    """The features to compare with: of a file of statistics, or of the run's images."""
    if job.reference is not None:
        shape = (1, *run.image_shape)
        dimensions = studio.extract(np.zeros(shape, np.uint8)).features.shape[1]
        return read_reference(job.reference, dimensions)
    assert source is not None
    return load_reference(studio.network, studio.extract, run.config.data, job.split, source)


def measure(names: list[MeasureName], sets: Sets) -> Figures:
    """Compute the measures, one after the other."""
    figures: dict[str, Any] = {}
    for name in names:
        with tell_if_slow(f"Computing {name}", delay=5):
            figures |= MEASURES[name].compute(sets)
    return figures


def measure_baseline(
    names: list[MeasureName], job: QualityJob, studio: Studio, run: runs.Run, reference: Reference
) -> Row | None:
    """Measure as many real images against the same reference; None if the data has no others."""
    if job.reference is not None:
        return None
    with tell_if_slow("Measuring real images, to compare with"):
        found = load_baseline(
            studio.network, studio.extract, run.config.data, job.split, job.num, run.image_shape
        )
        if found is None or len(found[1].features) < 2 * NUM_SPLITS:
            return None
        about, extracted = found
        return Row(
            about, measure(names, Sets(*extracted, reference.statistics, reference.features))
        )


def describe(
    run: runs.Run, job: QualityJob, settings: SampleConfig, studio: Studio, reference: Reference
) -> dict[str, Any]:
    """What must stand beside every figure."""
    return {
        "run": run.folder.resolve().name,
        "images": job.num,
        "sampler": settings.sampler,
        "steps": studio.num_steps,
        "guidance": settings.guidance,
        "seed": job.seed,
        "features": studio.network.about,
        "features_digest": studio.network.digest,
        "reference": reference.about,
        "reference_digest": reference.digest,
    }


def name_sheet(out: Path, number: int) -> Path:
    """The file for the nearest images; a second one for the raw parameters."""
    suffix = "" if number == 1 else "_raw"
    return out.with_name(f"{out.stem}_neighbours{suffix}.png")


def save_neighbours(path: Path, drawn: Pixels, source: ImageSource, nearest: Neighbours) -> None:
    """Draw the images that are closest to the data, each beside its nearest neighbours there.

    A row that shows one picture twice is an image that the network has memorised.
    """
    if not is_main_process():
        return
    suspects = np.argsort(nearest.distances[:, 0], kind="stable")[:NUM_SUSPECTS]
    cells = []
    for i in suspects:
        cells += [drawn[i], *read_images(source, nearest.indices[i])]
    columns = 1 + nearest.indices.shape[1]
    save_png(path, make_image_grid(np.stack(cells), columns=columns))
