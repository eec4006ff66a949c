"""The training job, which fills a run folder with checkpoints, metrics and pictures."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from jax_ddpm import runs
from jax_ddpm.config.epochs import resolve_epochs
from jax_ddpm.config.run import Config, validate
from jax_ddpm.config.sample import describe_low_start
from jax_ddpm.data.identity import identify
from jax_ddpm.data.loader import require_full_batch, require_labels
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.data.summary import DataSummary, summarize
from jax_ddpm.devices.layout import (
    assign_shardings,
    count_devices,
    draw_on_devices,
    make_state,
)
from jax_ddpm.devices.processes import get_process, is_distributed, max_over_processes
from jax_ddpm.errors import Stopped, UserError
from jax_ddpm.jobs.build import TRAINING, Parts, build
from jax_ddpm.jobs.describe import describe_data
from jax_ddpm.jobs.evaluation import (
    Measured,
    choose_training_features,
    describe_evaluation,
    evaluate_images,
)
from jax_ddpm.jobs.init_from import begin_with_given
from jax_ddpm.jobs.interrupt import doing
from jax_ddpm.jobs.messages import make_bar, tell, tell_if_slow
from jax_ddpm.jobs.progress import Progress, from_json, join_metrics
from jax_ddpm.jobs.report.ending import summarize_run
from jax_ddpm.jobs.train_call import note_call, write_final_report
from jax_ddpm.jobs.train_records import (
    draw_final_pictures,
    draw_grid,
    draw_missing_grid,
    drop_later_records,
    find_failure,
    make_stopped,
    save_checkpoint,
    write_averages,
    write_row,
)
from jax_ddpm.jobs.train_setup import Job, choose_layout, open_job
from jax_ddpm.jobs.validation import (
    describe_validation,
    find_interval,
    measure,
    open_training_data,
)
from jax_ddpm.runs import checkpoint
from jax_ddpm.runs.folder import Run
from jax_ddpm.runs.log import Written, describe_loss, read_lines, written_from_json
from jax_ddpm.training.feed import load_into_memory, make_feed
from jax_ddpm.training.state import TrainState


def train(config: Config) -> Run:
    """Train with `config` in its run folder, resuming from the newest checkpoint there.

    Raises UserError if training is impossible, and Stopped after Ctrl-C, SIGTERM or
    train.max_steps.
    """
    validate(config)
    opened = None
    if config.train.num_epochs is not None:
        opened = open_images(config)
        config = resolve_epochs(config, len(opened[0].images))
    choose_layout(config.train)  # raises for a batch that does not divide over the devices
    run = find_finished_run(config)
    if run is None:
        source, held_out = opened or open_images(config)
        with tell_if_slow("Building the network"):
            parts = build(config, source.image_shape)
        run = train_run(config, source, parts, held_out)
    else:
        tell(f"{run.folder} is finished: all {config.train.num_steps} steps are done")
    tell(f"Finished: {summarize_run(run)}")
    files = [path for path in (*list_pictures(run), run.report) if path.is_file()]
    tell(f"Look at {', '.join(map(str, files))}")
    return run


def open_images(config: Config) -> tuple[ImageSource, ImageSource | None]:
    """Do what `open_training_data` does, and say so if it takes long."""
    with tell_if_slow("Opening the images"):
        return open_training_data(config)


def train_run(
    config: Config, source: ImageSource, parts: Parts, held_out: ImageSource | None = None
) -> Run:
    """Train `parts` on the images of `source` in the run folder of `config`.

    If `config` asks for a validation loss, `held_out` has the images for it (see
    `open_training_data`).

    `parts` come from `build(config, source.image_shape)`, perhaps with a network of the user's own.
    Resumes from the newest checkpoint. Raises UserError if training is impossible, and Stopped
    after Ctrl-C, SIGTERM or train.max_steps.
    """
    validate(config)
    require_full_batch(source, config.train.batch_size)
    require_labels(source, parts.num_labels, parts.null_label)
    source = load_into_memory(source, config.train.data_on_device)
    with tell_if_slow("Looking at the images"):
        summary = summarize(source)
        images = identify(source, summary)
    features = choose_training_features(config, source.image_shape)
    with (
        runs.lock_for_training(config, source.image_shape, images) as opening,  # writes from here
        open_job(opening, parts, source, held_out, features) as job,
    ):
        tell_summary(job, summary)
        tell_changes(opening)
        state, progress, written = load_or_make_state(job)
        step = int(state.step)
        if step > 0:
            tell(f"Continuing after step {step} of {config.train.num_steps}")
        elif opening.run.metrics.is_file():
            tell("No checkpoint is there, so training begins again at step 0")
        drop_later_records(job, step, written)
        drawn = has_pictures(opening.run) and not opening.draws_otherwise
        if step < config.train.num_steps or not drawn:
            with note_call(job, step):
                state = take_steps(job, state, progress)
                finish_steps(job)
            draw_final_pictures(job, state)
            write_final_report(job)
        job.guard()
    return opening.run


def find_finished_run(config: Config) -> Run | None:
    """Find the run of `config` if it is finished, without opening data or building a network.

    Raises UserError if its folder holds something else, or a run with other settings.
    """
    if is_distributed():  # other processes may see the files a moment later and disagree
        return None
    opening = runs.load_for_training(config)
    if opening is None or opening.needs_work or not has_pictures(opening.run):
        return None
    run = opening.run
    with checkpoint.open_checkpoints(run.checkpoints) as checkpoints:
        if not checkpoint.is_intact(checkpoints, config.train.num_steps):
            return None
        about = checkpoint.describe(checkpoints, config.train.num_steps)
    step, written = config.train.num_steps, written_from_json(about.get("metrics"))
    if loss := describe_loss(run.metrics, read_lines(run.metrics, step), step, written):
        tell(loss)
    return run


def has_pictures(run: Run) -> bool:
    """Whether the pictures that a finished run has are there."""
    return all(path.is_file() and path.stat().st_size for path in list_pictures(run))


def list_pictures(run: Run) -> list[Path]:
    """The pictures that a finished run has."""
    return [run.final_grid, run.final_gif, run.loss_curve]


def tell_changes(opening: runs.Opening) -> None:
    """Tell which settings differ from those that the run had so far."""
    if opening.changes:
        tell(f"Changed from here on: {', '.join(map(str, opening.changes))}")


def tell_summary(job: Job, data: DataSummary) -> None:
    """Tell which network is trained, on which data, devices and folder."""
    config, layout = job.run.config, job.layout
    shapes = jax.eval_shape(job.parts.network.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    devices = f"{count_devices(layout.mode)} {jax.default_backend()} device(s)"
    tell(f"{config.preset}: {count:,} parameters, {layout.mode} on {devices}")
    tell("\n".join(describe_data(data, config.data)))
    if job.validation is not None:
        tell(describe_validation(job.validation, config))
    if job.evaluation is not None:
        about = job.evaluation.network.about
        tell(f"Evaluation: {describe_evaluation(config.train, about)}")
    tell(f"Run folder: {job.run.folder}")
    if low := describe_low_start(config.sample, config.diffusion.num_timesteps):
        tell(f"In its samples, {low}")


def load_or_make_state(job: Job) -> tuple[TrainState, Progress, Written | None]:
    """Load the newest intact checkpoint, or make a state from the seed or from imported weights.

    Also returns what the checkpoint remembers of the log.
    """
    key, layout = jax.random.key(job.run.config.seed), job.layout
    if checkpoint.find_latest_step(job.checkpoints) is None:
        return begin(job, key), Progress(), None
    shapes = jax.eval_shape(job.parts.init_state, key)
    like = assign_shardings(layout.mode, shapes, layout.fsdp)

    def read(step: int) -> tuple[TrainState, Progress, Written | None]:
        if step == 0:  # imported weights, perhaps for another optimiser or other averages
            params = checkpoint.restore_params(job.checkpoints, like.params, step=step)
            return make_state(job.parts.start_state, params, layout), Progress(), None
        about = checkpoint.describe(job.checkpoints, step)
        state = checkpoint.restore(job.checkpoints, like, step=step)
        written = written_from_json(about.get("metrics"))
        return state, from_json(about.get("progress")), written

    with tell_if_slow("Loading the newest checkpoint"):
        return checkpoint.read_newest(job.checkpoints, read)


def begin(job: Job, key: Any) -> TrainState:
    """Make the state before the first step, from the seed and perhaps from given parameters.

    Given parameters are saved at once: the run that they come from may change.
    """
    init, train = job.parts.network.init, job.run.config.train
    if train.init_from is not None:
        init = begin_with_given(init, train)
    with tell_if_slow("Drawing the initial parameters"):
        params = draw_on_devices(init, key, job.layout)
        state = jax.block_until_ready(make_state(job.parts.start_state, params, job.layout))
    if train.init_from is not None:
        save_checkpoint(job, state, Progress(), due=False)
    return state


def take_steps(job: Job, state: TrainState, progress: Progress) -> TrainState:
    """Take the remaining steps, and log, draw and save when due or on request.

    Raises Stopped if the user stops training, and UserError if too many steps fail.
    """
    train, step = job.run.config.train, int(state.step)
    end = min(train.num_steps, step + (train.max_steps or train.num_steps))
    if job.stop.signum and step < end and not is_distributed():
        raise make_stopped(job, step, job.stop.signum)
    draw_missing_grid(job, state, step)
    key = jax.random.fold_in(jax.random.key(job.run.config.seed), TRAINING)
    with ExitStack() as stack:
        bar: Any = None
        for batch, count in open_feed(job, step, end):
            state, values = job.train_step(state, batch, key)
            jax.block_until_ready(progress.window[-1:])  # at most two calls are in flight
            job.stop.protect()
            step, progress = step + count, progress.add(values)
            if bar is None:  # opened late, so that its estimate leaves out compilation
                bar = stack.enter_context(make_bar(train.num_steps, "step", initial=step))
            else:
                bar.update(count)
            measured = measure_if_due(job, state, step, bar)
            progress, failure = log_if_due(job, state, step, progress, bar, measured)
            signum = job.agree(job.stop.signum or 0)
            last, stopping = step == train.num_steps, bool(failure or signum) or step == end
            due = last or step % train.checkpoint_every == 0
            if stopping or due:
                progress = save_checkpoint(job, state, progress, due=due, measured=measured)
            if failure:
                checkpoint.wait(job.checkpoints)
                raise failure
            if stopping and not last:
                raise make_stopped(job, step, signum)
            if step % train.sample_every == 0 and not last:
                draw_grid(job, state, step)
                bar.unpause()
    return state


def finish_steps(job: Job) -> None:
    """Wait until the last checkpoint is saved. Raises Stopped if the user stops training."""
    with doing("saving the last step"):
        checkpoint.wait(job.checkpoints)
    done = f"all steps are done and saved in {job.run.folder}"
    again = "run the same command again to draw the final pictures"
    signum = job.stop.signum
    if not is_distributed():
        signum = job.stop.release(f"while drawing the final pictures: {done}; {again}")
    if signum := max_over_processes(signum or 0):
        raise Stopped(signum, f"Stopped, but {done}: {again}")


def measure_if_due(job: Job, state: TrainState, step: int, bar: Any) -> Measured:
    """Measure the validation losses, and the quality of drawn images, each if it is due."""
    config, validated, evaluated = job.run.config, None, None
    last = step == config.train.num_steps

    def is_due(every: int | None) -> bool:
        return every is not None and (step % every == 0 or last)

    if job.validation is not None and is_due(find_interval(config)):
        with doing("measuring the validation loss"):
            validated = measure(job.validation, state, step)
        bar.unpause()
    if job.evaluation is not None and is_due(config.train.evaluate_every):
        with doing("evaluating drawn images"):
            evaluated = evaluate_images(job.evaluation, job.generate, job.parts, state, step)
        bar.unpause()
    return Measured(validated, evaluated)


def log_if_due(
    job: Job,
    state: TrainState,
    step: int,
    progress: Progress,
    bar: Any,
    measured: Measured,
) -> tuple[Progress, UserError | None]:
    """Write a row and averages when due; return the progress and the error that ends the run.

    The error is None if training can go on. The averages are written before the checkpoint, so that
    a resumed run never lacks them.
    """
    train, last = job.run.config.train, step == job.run.config.train.num_steps
    if step % train.log_every != 0 and not last:
        return progress, None
    metrics = join_metrics(progress.window)
    loss = write_row(job, step, metrics, bar.format_dict["rate"], measured)
    summary = {} if job.evaluation is None else job.evaluation.summary
    bar.set_postfix(loss=f"{loss:.4f}", refresh=False, **summary)
    if last or step % train.snapshot_every == 0:
        write_averages(job, state, step)
    return progress.close_row(loss), find_failure(job, step, metrics)


def open_feed(job: Job, step: int, end: int) -> Any:
    """Open the stream of (batch, number of steps it is for), from `step` up to `end`."""
    train = job.run.config.train
    return make_feed(
        job.source,
        train.batch_size,
        job.run.config.seed,
        start_step=step,
        end_step=end,
        steps_per_call=train.steps_per_call,
        on_device=job.on_device,
        process=get_process(),
    )
