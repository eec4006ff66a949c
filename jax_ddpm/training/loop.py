"""The training job: from a configuration to a run folder with checkpoints, metrics and pictures."""

import math
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jax_ddpm import runs
from jax_ddpm.build import build, open_data
from jax_ddpm.config import Config, validate
from jax_ddpm.data.loader import batches, require_full_batch, require_labels
from jax_ddpm.drawing import Samples, generate_images
from jax_ddpm.errors import Stopped, UserError
from jax_ddpm.generate import write_samples
from jax_ddpm.images import grid
from jax_ddpm.plots import save_loss_curve
from jax_ddpm.runs import Run
from jax_ddpm.training import checkpoint, metrics
from jax_ddpm.training.job import Job, prepared
from jax_ddpm.training.parallel import choose_mode, num_devices, on_one_device
from jax_ddpm.training.snapshots import write_snapshots
from jax_ddpm.training.state import TrainState, starting_from
from jax_ddpm.training.step import Metrics

GRID_IMAGES = 64


def train(config: Config) -> Run:
    """Train what `config` describes in its run folder, from the newest checkpoint there on.

    Raises UserError for anything in the way, and Stopped after Ctrl-C or SIGTERM.
    """
    validate(config)
    choose_mode(config.train.parallel, config.train.batch_size)
    source = open_data(config.data)
    require_full_batch(source, config.train.batch_size)
    parts = build(config, source.image_shape)
    require_labels(source, parts.num_labels, parts.null_label)
    run = runs.open_for_training(config, source.image_shape)  # from here on the disk is written to
    with prepared(run, parts, source) as job:
        state = first_state(job)
        announce(job, state)
        if not finished(job, state):
            state = fit(job, state)
            finish(job, state)
    print(f"Finished: {run.final_grid}, {run.final_gif}, {run.loss_curve}", flush=True)
    return run


def first_state(job: Job) -> TrainState:
    """The newest checkpoint, or a fresh state from the seed, or from the weights of an import."""
    state = jax.jit(job.parts.init_state)(jax.random.key(job.run.config.seed))
    step = checkpoint.latest_step(job.checkpoints)
    if step is None:
        return state
    if step == 0:  # imported, maybe with another optimiser and other averages
        params = checkpoint.restore_params(job.checkpoints, state.params, step=step)
        return starting_from(params, state)
    return checkpoint.restore(job.checkpoints, state)


def announce(job: Job, state: TrainState) -> None:
    """Say what is about to happen, in three lines."""
    run, train = job.run, job.run.config.train
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    mode = choose_mode(train.parallel, train.batch_size)
    size = "x".join(map(str, run.image_shape))
    devices = f"{num_devices(mode)} {jax.default_backend()} device(s)"
    data = f"{len(job.source.images):,} images of {size}"
    print(f"{run.config.preset}: {count:,} parameters, {data}, {mode} on {devices}")
    print(f"Run folder: {run.folder}")
    if state.step > 0:
        print(f"Continuing after step {int(state.step)} of {train.num_steps}")


def finished(job: Job, state: TrainState) -> bool:
    """Whether the last step is done and its pictures are there."""
    return int(state.step) == job.run.config.train.num_steps and job.run.loss_curve.exists()


def fit(job: Job, state: TrainState) -> TrainState:
    """Take the steps that are left; log, draw and save when it is time, or on request."""
    config, train = job.run.config, job.run.config.train
    key = jax.random.fold_in(jax.random.key(config.seed), 1)  # key(seed) itself made the parameters
    data = batches(job.source, train.batch_size, config.seed, start_step=int(state.step))
    window: list[Metrics] = []
    losses: list[float] = []  # of the windows since the last checkpoint
    with tqdm(
        total=train.num_steps, initial=int(state.step), unit="step", dynamic_ncols=True
    ) as bar:
        for step in range(int(state.step) + 1, train.num_steps + 1):
            state, values = job.train_step(state, next(data), key)
            window.append(values)
            last = step == train.num_steps
            if step % train.log_every == 0 or last:
                losses.append(log(job, step, window, bar))
                window = []
                if last or step % train.snapshot_every == 0:
                    snapshot(job, state, step)  # before the checkpoint, lest a resumed run lack it
                if job.stop.signum or last or step % train.checkpoint_every == 0:
                    save(job, state, float(np.mean(losses)))
                    losses = []
                if job.stop.signum and not last:
                    raise stopped(job, step)
                if step % train.sample_every == 0 and not last:
                    draw_grid(job, state, step)
    return state


def log(job: Job, step: int, window: list[Metrics], bar: Any) -> float:
    """Write the means of `window` and return that of the loss.

    Raises UserError before a loss that is not finite is saved.
    """
    rows = jax.device_get(window)
    means = {
        name: float(np.mean([row[name] for row in rows], dtype=np.float64)) for name in rows[0]
    }
    if not all(math.isfinite(value) for value in means.values()):
        saved = checkpoint.latest_step(job.checkpoints)
        raise UserError(
            f"the loss is {means['loss']} after step {step}: the last checkpoint, of step {saved}, "
            "is as it was; try a lower --train.learning-rate in another --run"
        )
    row = metrics.Row(step, **means, learning_rate=float(job.parts.learning_rate(step - 1)))
    metrics.append(job.run.metrics, row)
    for name in ("loss", "grad_norm", "learning_rate"):
        job.board.add_scalar(name, getattr(row, name), step)
    bar.update(len(window))
    bar.set_postfix(loss=f"{row.loss:.4f}")
    if bar.format_dict["rate"]:
        job.board.add_scalar("steps_per_second", bar.format_dict["rate"], step)
    return row.loss


def snapshot(job: Job, state: TrainState, step: int) -> None:
    """Store the averages from which others are reconstructed, if the run has such."""
    averages = on_one_device(state.posthoc_ema)
    write_snapshots(job.run.snapshots, job.run.config.train.posthoc_ema, averages, step)


def save(job: Job, state: TrainState, loss: float) -> None:
    """Write a checkpoint with the configuration in it, and the mean loss since the one before."""
    checkpoint.save(job.checkpoints, state, runs.describe(job.run), loss=loss)


def stopped(job: Job, step: int) -> Stopped:
    """The exception that ends an interrupted run."""
    assert job.stop.signum is not None
    message = f"Stopped and saved after step {step} in {job.run.folder}"
    return Stopped(job.stop.signum, f"{message}: run the same command again to continue")


def draw_grid(job: Job, state: TrainState, step: int) -> Samples:
    """Draw a grid with the averaged parameters and file it under `step`."""
    params = on_one_device(state.ema_params)
    samples = next(
        generate_images(
            job.generate,
            params,
            GRID_IMAGES,
            seed=job.run.config.seed,
            num_labels=job.parts.num_labels,
        )
    )
    write_samples(job.run.samples / f"step_{step:07d}.png", samples)
    job.board.add_image("samples", grid(samples.images), step, dataformats="HWC")
    return samples


def finish(job: Job, state: TrainState) -> None:
    """Draw the final grid, the GIF and the loss curve; with keep_best, from the best checkpoint."""
    best = checkpoint.best_step(job.checkpoints)
    if job.run.config.train.keep_best and best not in (None, int(state.step)):
        print(f"The checkpoint of lowest loss is that of step {best}: the images are its own")
        state = checkpoint.restore(job.checkpoints, state, step=best)
    samples = draw_grid(job, state, job.run.config.train.num_steps)
    write_samples(job.run.final_grid, samples)
    write_samples(job.run.final_gif, samples)
    rows = metrics.read(job.run.metrics)
    save_loss_curve(job.run.loss_curve, [row.step for row in rows], [row.loss for row in rows])
