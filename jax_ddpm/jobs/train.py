"""The training job: from a configuration to a run folder with checkpoints, metrics and pictures."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jax_ddpm import runs
from jax_ddpm.config.run import Config, validate
from jax_ddpm.data.loader import batch_indices, require_full_batch, require_labels
from jax_ddpm.devices.layout import count_devices, make_state, to_one_device
from jax_ddpm.devices.processes import is_distributed, is_main_process, process
from jax_ddpm.errors import Stopped, UserError
from jax_ddpm.files.figures import save_loss_curve
from jax_ddpm.files.images import make_image_grid
from jax_ddpm.jobs.build import build, open_data
from jax_ddpm.jobs.generate import Samples, generate_images
from jax_ddpm.jobs.progress import Progress, from_json, join_metrics, to_json
from jax_ddpm.jobs.sample import write_samples
from jax_ddpm.jobs.training import Job, choose_layout, open_job
from jax_ddpm.runs import checkpoint, metrics
from jax_ddpm.runs.folder import Run
from jax_ddpm.runs.snapshots import write_snapshots
from jax_ddpm.training.feed import load_into_memory, make_feed
from jax_ddpm.training.state import TrainState, restart_from

GRID_IMAGES = 64


def train(config: Config) -> Run:
    """Train what `config` describes in its run folder, from the newest checkpoint there on.

    Raises UserError for anything in the way, and Stopped after Ctrl-C or SIGTERM.
    """
    validate(config)
    choose_layout(config.train)  # refuses a batch or devices that do not divide
    source = open_data(config.data)
    require_full_batch(source, config.train.batch_size)
    parts = build(config, source.image_shape)
    require_labels(source, parts.num_labels, parts.null_label)
    source = load_into_memory(source, config.train.data_on_device)
    with (
        runs.lock_for_training(config, source.image_shape) as run,  # from here on it is written
        open_job(run, parts, source) as job,
    ):
        state, progress = load_or_make_state(job)
        drop_later_records(job, int(state.step))
        print_summary(job, state)
        if not is_finished(job, state):
            state = fit(job, state, progress)
            finish(job, state)
    print(f"Finished: {run.final_grid}, {run.final_gif}, {run.loss_curve}", flush=True)
    return run


def load_or_make_state(job: Job) -> tuple[TrainState, Progress]:
    """The newest whole checkpoint, or a fresh state from the seed, or from imported weights."""
    state = make_state(job.parts.init_state, jax.random.key(job.run.config.seed), job.layout)
    if checkpoint.find_latest_step(job.checkpoints) is None:
        return state, Progress()

    def read(step: int) -> tuple[TrainState, Progress]:
        if step == 0:  # imported, maybe with another optimiser and other averages
            params = checkpoint.restore_params(job.checkpoints, state.params, step=step)
            return restart_from(params, state), Progress()
        about = checkpoint.describe(job.checkpoints, step)
        restored = checkpoint.restore(job.checkpoints, state, step=step)
        return restored, from_json(about.get("progress"))

    return checkpoint.read_newest(job.checkpoints, read)


def drop_later_records(job: Job, step: int) -> None:
    """Drop what was written of the steps after `step`, where training goes on."""
    if is_main_process():
        metrics.drop_rows_after(job.run.metrics, step)
        job.board.start_after(step)


def print_summary(job: Job, state: TrainState) -> None:
    """Say what is about to happen, in three lines."""
    run, train = job.run, job.run.config.train
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    mode = job.layout.mode
    size = "x".join(map(str, run.image_shape))
    devices = f"{count_devices(mode)} {jax.default_backend()} device(s)"
    data = f"{len(job.source.images):,} images of {size}"
    print(f"{run.config.preset}: {count:,} parameters, {data}, {mode} on {devices}")
    print(f"Run folder: {run.folder}")
    if state.step > 0:
        print(f"Continuing after step {int(state.step)} of {train.num_steps}")


def is_finished(job: Job, state: TrainState) -> bool:
    """Whether the last step is done and its pictures are there."""
    return int(state.step) == job.run.config.train.num_steps and job.run.loss_curve.exists()


def fit(job: Job, state: TrainState, progress: Progress) -> TrainState:
    """Take the steps that are left; log, draw and save when it is time, or on request."""
    config, train = job.run.config, job.run.config.train
    key = jax.random.fold_in(jax.random.key(config.seed), 1)  # key(seed) itself made the parameters
    step = int(state.step)
    end = min(train.num_steps, step + (train.max_steps or train.num_steps))
    if job.stop.signum and step < end and not is_distributed():
        raise make_stopped(job, step, job.stop.signum)
    draw_missing_grid(job, state, step)
    feed = make_feed(
        job.source, train.batch_size, config.seed, start_step=step, end_step=end,
        steps_per_call=train.steps_per_call, on_device=job.on_device, process=process(),
    )  # fmt: skip
    window, losses, bad = list(progress.window), list(progress.losses), None
    begin = step - progress.num_steps
    shown: dict[str, Any] = {"unit": "step", "dynamic_ncols": True}
    shown["disable"] = not is_main_process()
    with tqdm(total=train.num_steps, initial=begin, **shown) as bar:
        for batch, count in feed:
            state, values = job.train_step(state, batch, key)
            window.append(values)
            step += count
            last = step == train.num_steps
            if step % train.log_every == 0 or last:
                rows, window = join_metrics(window), []
                losses.append(log(job, step, rows, bar))
                if last or step % train.snapshot_every == 0:
                    snapshot(job, state, step)  # before the checkpoint, lest a resumed run lack it
                bad = check_bad_steps(job, step, rows)
            signum = job.agree(job.stop.signum or 0)
            stopping = bool(bad or signum) or step == end
            due = last or step % train.checkpoint_every == 0
            if stopping or due:
                loss, losses = (average_finite(losses), []) if due else (math.nan, losses)
                save(job, state, loss, Progress(tuple(window), tuple(losses)))
            if bad:
                checkpoint.wait(job.checkpoints)
                raise bad
            if stopping and not last:
                raise make_stopped(job, step, signum)
            if step % train.sample_every == 0 and not last:
                draw_grid(job, state, step)
    return state


def draw_missing_grid(job: Job, state: TrainState, step: int) -> None:
    """Draw the grid of `step`, where training goes on, if it ended between checkpoint and grid."""
    train = job.run.config.train
    due = 0 < step < train.num_steps and step % train.sample_every == 0
    if due and not path_of_grid(job, step).exists():
        draw_grid(job, state, step)


def log(job: Job, step: int, rows: dict[str, Any], bar: Any) -> float:
    """Write the means over the steps of `rows` that were not skipped; return that of the loss."""
    good = rows["skipped"] == 0
    means = {name: average_finite(rows[name][good]) for name in ("loss", "grad_norm")}
    skipped = len(good) - int(good.sum())
    rate = float(job.parts.learning_rate(step - 1))
    row = metrics.Row(step, **means, learning_rate=rate, skipped=skipped)
    if not is_main_process():
        return row.loss
    metrics.append(job.run.metrics, row)
    for name in ("loss", "grad_norm", "learning_rate", "skipped"):
        job.board.add_scalar(name, getattr(row, name), step)
    bar.update(len(good))
    bar.set_postfix(loss=f"{row.loss:.4f}")
    if skipped:
        bar.write(
            f"{skipped} of the {len(good)} steps up to step {step} were skipped: their loss or "
            "gradient was not a finite number"
        )
    if bar.format_dict["rate"]:
        job.board.add_scalar("steps_per_second", bar.format_dict["rate"], step)
    return row.loss


def average_finite(values: Any) -> float:
    """The mean of the values that are finite numbers; NaN if none is."""
    values = np.asarray(values)
    finite = values[np.isfinite(values)]
    return float(np.mean(finite, dtype=np.float64)) if len(finite) else math.nan


def check_bad_steps(job: Job, step: int, rows: dict[str, Any]) -> UserError | None:
    """The error that ends the run if too many steps in a row were skipped, as `rows` say."""
    config, limit = job.run.config, job.run.config.train.max_bad_steps
    in_a_row = rows["skipped_in_a_row"]
    if in_a_row.max() < limit:
        return None
    reached = step - len(in_a_row) + int(np.argmax(in_a_row >= limit)) + 1
    first = reached - int(in_a_row[in_a_row >= limit][0]) + 1
    count, size = len(job.source.images), config.train.batch_size
    images = batch_indices(count, size, config.seed, first - 1)[:8].tolist()
    half = config.model.compute_dtype != "float32"
    dtype = " or --model.compute-dtype float32" if half else ""
    return UserError(
        f"{reached - first + 1} steps in a row, {first} to {reached}, had a loss or gradient that "
        "is not a finite number and were skipped; the state that the good steps left is saved as "
        f"checkpoint {step}: try a lower --train.learning-rate{dtype} in another --run, and look "
        f"at the images of step {first}, which are numbers {', '.join(map(str, images))}... of the "
        "data"
    )


def snapshot(job: Job, state: TrainState, step: int) -> None:
    """Store the averages from which others are reconstructed, if the run has such."""
    averages = to_one_device(state.posthoc_ema)
    if is_main_process():
        write_snapshots(job.run.snapshots, job.run.config.train.posthoc_ema, averages, step)


def save(job: Job, state: TrainState, loss: float, progress: Progress) -> None:
    """Begin a checkpoint with the configuration in it, and the mean loss since the one before."""
    about = runs.describe(job.run) | {"progress": to_json(progress)}
    known = loss if math.isfinite(loss) else None
    checkpoint.save(job.checkpoints, state, about, loss=known)


def make_stopped(job: Job, step: int, signum: int) -> Stopped:
    """The exception that ends a run before its last step, once its checkpoint is on disk."""
    checkpoint.wait(job.checkpoints)
    message = f"Stopped and saved after step {step} in {job.run.folder}"
    return Stopped(signum or None, f"{message}: run the same command again to continue")


def draw_grid(job: Job, state: TrainState, step: int) -> Samples:
    """Draw a grid with the averaged parameters, where they are, and file it under `step`."""
    samples = next(
        generate_images(
            job.generate,
            state.ema_params,
            GRID_IMAGES,
            seed=job.run.config.seed,
            num_labels=job.parts.num_labels,
        )
    )
    write_samples(path_of_grid(job, step), samples)
    if is_main_process():
        job.board.add_image("samples", make_image_grid(samples.images), step)
    return samples


def path_of_grid(job: Job, step: int) -> Path:
    """The file of the sample grid of `step`."""
    return job.run.samples / f"step_{step:07d}.png"


def finish(job: Job, state: TrainState) -> None:
    """Draw the final grid, the GIF and the loss curve; with keep_best, from the best checkpoint."""
    best = checkpoint.find_best_step(job.checkpoints)
    if job.run.config.train.keep_best and best not in (None, int(state.step)):
        print(f"The checkpoint of lowest loss is that of step {best}: the images are its own")
        state = checkpoint.restore(job.checkpoints, state, step=best)
    samples = draw_grid(job, state, job.run.config.train.num_steps)
    write_samples(job.run.final_grid, samples)
    write_samples(job.run.final_gif, samples)
    if not is_main_process():
        return
    rows = [row for row in metrics.read(job.run.metrics) if math.isfinite(row.loss)]
    save_loss_curve(job.run.loss_curve, [row.step for row in rows], [row.loss for row in rows])
