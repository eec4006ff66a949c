"""What a training job writes: rows of metrics, averages, checkpoints and pictures."""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_ddpm import runs
from jax_ddpm.config.train import Criterion
from jax_ddpm.data.loader import batch_indices
from jax_ddpm.devices.layout import to_one_device
from jax_ddpm.devices.processes import is_distributed, is_main_process
from jax_ddpm.errors import Stopped, UserError, is_out_of_memory
from jax_ddpm.files.figures import save_loss_curve
from jax_ddpm.files.images import make_image_grid
from jax_ddpm.jobs.evaluation import Measured
from jax_ddpm.jobs.generate import Samples, collect, generate_images
from jax_ddpm.jobs.interrupt import doing
from jax_ddpm.jobs.labels import list_class_names
from jax_ddpm.jobs.messages import tell
from jax_ddpm.jobs.progress import Progress, to_json
from jax_ddpm.jobs.sample_files import name_images, write_samples
from jax_ddpm.jobs.train_setup import Job
from jax_ddpm.optim.averages import Params
from jax_ddpm.runs import checkpoint, metrics
from jax_ddpm.runs.folder import Run
from jax_ddpm.runs.log import Written
from jax_ddpm.runs.loggers import flatten_settings
from jax_ddpm.runs.snapshots import write_snapshots
from jax_ddpm.training.state import TrainState

TERMS = ("mse", "vb")  # of a hybrid loss
NOTHING = Measured()
GRID = "the sample grid"  # what may fail


def drop_later_records(job: Job, step: int, written: Written | None = None) -> None:
    """Drop the records of steps after `step`, where training resumes.

    Warns if earlier rows of the log are not those `written` when the checkpoint was saved.
    """
    if is_main_process():
        job.log.resume(step, written)
        settings = flatten_settings(job.run)
        for logger in job.loggers:
            with job.attempts.attempt(logger.title):
                logger.begin(step, settings)


def write_row(
    job: Job,
    step: int,
    values: dict[str, Any],
    steps_per_second: float | None,
    measured: Measured = NOTHING,
) -> float:
    """Write the means of `values` over the steps that were not skipped; return the mean loss.

    The row also holds what was measured after this step.
    """
    good = values["skipped"] == 0
    names = [name for name in ("loss", "grad_norm", *TERMS) if name in values]
    means = {name: average_finite(values[name][good]) for name in names}
    skipped = len(good) - int(good.sum())
    rate = float(job.parts.learning_rate(step - 1))
    more = measured.list_figures()
    row = metrics.Row(step, **means, learning_rate=rate, skipped=skipped, **more)
    if not is_main_process():
        return row.loss
    job.guard()
    job.log.append(row)
    curves = (*means, "learning_rate", "skipped", *more)
    shown = {name: getattr(row, name) for name in curves} | {"steps_per_second": steps_per_second}
    known = {name: value for name, value in shown.items() if value is not None}
    for logger in job.loggers:
        with job.attempts.attempt(logger.title):
            logger.add_scalars(known, step)
    if skipped:
        tell(
            f"{skipped} of the {len(good)} steps up to step {step} were skipped: their loss or "
            "gradient was not a finite number"
        )
    return row.loss


def average_finite(values: Any) -> float:
    """Average the finite values; NaN if there are none."""
    values = np.asarray(values)
    finite = values[np.isfinite(values)]
    return float(np.mean(finite, dtype=np.float64)) if len(finite) else math.nan


def find_failure(job: Job, step: int, values: dict[str, Any]) -> UserError | None:
    """Return the error that ends the run if too many steps in a row were skipped."""
    config, limit = job.run.config, job.run.config.train.max_bad_steps
    in_a_row = values["skipped_in_a_row"]
    if in_a_row.max() < limit:
        return None
    reached = step - len(in_a_row) + int(np.argmax(in_a_row >= limit)) + 1
    first = reached - int(in_a_row[in_a_row >= limit][0]) + 1
    count, size = len(job.source.images), config.train.batch_size
    images = batch_indices(count, size, config.seed, first - 1)[:8].tolist()
    kept = ", without those held out" if config.data.holdout else ""
    half = config.model.compute_dtype != "float32"
    dtype = " or --model.compute-dtype float32" if half else ""
    return UserError(
        f"{reached - first + 1} steps in a row, {first} to {reached}, were skipped because their "
        "loss or gradient was not a finite number. The state after the last good step is saved as "
        f"checkpoint {step}. Try a lower --train.learning-rate{dtype} in another --run, and look "
        f"at the images of step {first}: numbers {', '.join(map(str, images))}... of the data{kept}"
    )


def write_averages(job: Job, state: TrainState, step: int) -> None:
    """Write a snapshot of the averages for train.posthoc_ema, if the run has any."""
    averages = to_one_device(state.posthoc_ema)
    job.guard()
    if is_main_process():
        write_snapshots(job.run.snapshots, job.run.config.train.posthoc_ema, averages, step)


def save_checkpoint(
    job: Job,
    state: TrainState,
    progress: Progress,
    *,
    due: bool,
    measured: Measured = NOTHING,
) -> Progress:
    """Start saving a checkpoint that holds the configuration and `progress`.

    A checkpoint that is `due`, not only made on request, is saved with a loss, and the progress
    returned no longer holds the losses since the last one. The loss is what the best checkpoint is
    found by: their mean, or what was measured after this step.
    """
    loss = find_loss(job.criterion, progress, measured) if due else math.nan
    progress = progress._replace(losses=()) if due else progress
    about = runs.describe(job.run) | {"progress": to_json(progress)}
    about["metrics"] = job.log.written._asdict()
    known = loss if math.isfinite(loss) else None
    checkpoint.save(job.checkpoints, state, about, loss=known)
    return progress


def find_loss(criterion: Criterion, progress: Progress, measured: Measured) -> float:
    """What the best checkpoint has the lowest value of; NaN if it is not known."""
    validated, evaluated = measured
    match criterion:
        case "validation":
            return math.nan if validated is None else validated.validation_loss
        case "distance":
            return math.nan if evaluated is None else evaluated.frechet
    return average_finite(progress.losses)


def make_stopped(job: Job, step: int, signum: int) -> Stopped:
    """Wait until the checkpoint of `step` is saved; return the exception that ends the run."""
    tell(f"Stopping: saving step {step}")
    with doing("saving"):
        checkpoint.wait(job.checkpoints)
    message = f"Stopped and saved after step {step} in {job.run.folder}"
    return Stopped(signum or None, f"{message}: run the same command again to continue")


def draw_grid(job: Job, state: TrainState, step: int, *, frames: bool = False) -> Samples | None:
    """Draw a grid of samples with the averaged parameters, and save it; None if that fails."""
    path, samples, names = path_of_grid(job.run, step), None, list_class_names(job.run)
    with doing("drawing the sample grid"), job.attempts.attempt(GRID, by_all=True):
        num = job.run.config.train.sample_images
        tell(f"Drawing {num} samples: {path}")
        samples = draw_in_parts(job, state.ema_params, num, frames)
    if samples is None:
        return None
    job.guard()
    with job.attempts.attempt(GRID):
        write_samples(path, samples, class_names=names)
    if is_main_process():
        show_samples(job, samples, name_images(samples, names), step)
    return samples


def show_samples(job: Job, samples: Samples, captions: Sequence[str], step: int) -> None:
    """Show an image grid of `samples` in every logger."""
    for logger in job.loggers:
        with job.attempts.attempt(logger.title):
            grid = make_image_grid(samples.images, captions=captions)
            logger.add_image("samples", grid, step)


def draw_in_parts(job: Job, params: Params, num: int, frames: bool) -> Samples:
    """Draw `num` images train.sample_batch_size at a time, or fewer if the memory is too small."""
    at_once = min(job.run.config.train.sample_batch_size, num)
    while True:
        batches = generate_images(
            job.generate,
            params,
            num,
            seed=job.run.config.seed,
            batch_size=at_once,
            num_labels=job.parts.num_labels,
            keep_frames=frames,
        )
        try:
            return collect(batches)
        except jax.errors.JaxRuntimeError as error:
            # Other processes would go on with the larger batch, so there is no second try there.
            if not is_out_of_memory(error) or at_once == 1 or is_distributed():
                raise
        at_once = (at_once + 1) // 2
        tell(
            f"The memory is too small for that many images at a time: drawing {at_once} at a time "
            "(--train.sample-batch-size)"
        )


def draw_missing_grid(job: Job, state: TrainState, step: int) -> None:
    """Draw the grid of `step`, where training begins or resumes, if it is due but was not drawn."""
    train = job.run.config.train
    due = 0 < step < train.num_steps and step % train.sample_every == 0
    due = due or (step == 0 and train.sample_at_start)
    if due and not path_of_grid(job.run, step).exists():
        draw_grid(job, state, step)


def path_of_grid(run: Run, step: int) -> Path:
    """The file for the sample grid of `step`."""
    return run.samples / f"step_{step:07d}.png"


def draw_final_pictures(job: Job, state: TrainState) -> None:
    """Draw the final grid, the GIF and the loss curve; with keep_best, from the best checkpoint."""
    best = checkpoint.find_best_step(job.checkpoints)
    if job.run.config.train.keep_best and best not in (None, int(state.step)):
        kind = LOWEST[job.criterion]
        tell(f"Drawing the final images from the checkpoint with the lowest {kind}, step {best}")
        state = checkpoint.restore(job.checkpoints, state, step=best)
    failures = job.attempts.failures
    failures.clear()  # what failed during training is known; what fails now is missing at the end
    samples = draw_grid(job, state, job.run.config.train.num_steps, frames=True)
    for path in (job.run.final_grid, job.run.final_gif):
        if samples is None:
            failures[path.name] = failures[GRID]
        else:
            with job.attempts.attempt(path.name):
                write_samples(path, samples, class_names=list_class_names(job.run))
    if is_main_process():
        with job.attempts.attempt(job.run.loss_curve.name):
            draw_loss_curve(job)
        require_pictures(job)


def draw_loss_curve(job: Job) -> None:
    """Plot the losses in the log."""
    rows = metrics.read(job.run.metrics)
    steps, losses = find_curve(rows, "loss")
    others = {name: find_curve(rows, field) for name, field in CURVES.items()}
    distances = find_curve(rows, "frechet")
    title = "" if job.evaluation is None else job.evaluation.title
    save_loss_curve(job.run.loss_curve, steps, losses, others, distances=distances, title=title)


def require_pictures(job: Job) -> None:
    """Raise UserError if a final picture could not be drawn, although all steps are done."""
    run = job.run
    for path in (run.final_grid, run.final_gif, run.loss_curve):
        if path.name in job.attempts.failures:
            with suppress(OSError):
                path.unlink()  # one that is no longer right, so that it is drawn again
            raise UserError(
                f"all {run.config.train.num_steps} steps are done and saved in {run.folder}, but "
                f"{path.name} is missing ({job.attempts.failures[path.name]}): run the same "
                "command again to draw it"
            )


LOWEST = {"loss": "loss", "validation": "validation loss", "distance": "distance"}
CURVES = {
    "held-out images": "validation_loss",
    "training images, same noise": "trained_loss",
    "its mean squared error": "mse",
    "its bound": "vb",
}


def find_curve(rows: Sequence[metrics.Row], field: str) -> tuple[list[int], list[float]]:
    """The steps at which a field of the rows is finite, and its values there."""
    points = [(row.step, getattr(row, field)) for row in rows]
    finite = [(step, value) for step, value in points if value is not None and math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]
