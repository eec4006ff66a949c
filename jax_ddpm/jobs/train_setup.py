"""Set up a training job: its run folder, compiled programs, data and signal handlers."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jax_ddpm.config.run import Config, TrainConfig, choose_criterion
from jax_ddpm.config.train import Criterion
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.devices.layout import Layout, choose_mode, replicate
from jax_ddpm.devices.parallel import loops_over_steps, parallelize
from jax_ddpm.devices.processes import Agreement, is_distributed
from jax_ddpm.jobs.attempts import Attempts
from jax_ddpm.jobs.build import Parts
from jax_ddpm.jobs.evaluation import Evaluation, open_evaluation
from jax_ddpm.jobs.features import FeatureNetwork
from jax_ddpm.jobs.generate import GenerateFn, make_generate_fn
from jax_ddpm.jobs.interrupt import BEFORE, StopRequest
from jax_ddpm.jobs.messages import announce_compilation
from jax_ddpm.jobs.validation import Validation, make_validation
from jax_ddpm.models.remat import recompute_segments
from jax_ddpm.process.losses import LossFn, make_loss_fn
from jax_ddpm.process.timesteps import make_timestep_fn
from jax_ddpm.runs.checkpoint import Checkpoints, open_checkpoints
from jax_ddpm.runs.folder import Run
from jax_ddpm.runs.log import Log
from jax_ddpm.runs.loggers import Logger, open_loggers
from jax_ddpm.runs.opening import Opening
from jax_ddpm.training.feed import fits_on_device
from jax_ddpm.training.step import TrainStep, call_in_turn, make_train_step, scan_steps
from jax_ddpm.training.update import make_update


class Job(NamedTuple):
    """A run, and everything that training it needs."""

    run: Run
    parts: Parts
    source: ImageSource
    train_step: TrainStep
    generate: GenerateFn
    checkpoints: Checkpoints
    loggers: tuple[Logger, ...]
    log: Log
    stop: StopRequest
    attempts: Attempts
    """What training can do without, such as pictures."""
    on_device: Any | None = None
    """All images and labels, if they are kept on the devices."""
    agree: Callable[[int], int] = int
    """Exchanges signals between processes: returns one that any of them has received, or 0."""
    validation: Validation | None = None
    """What the validation loss is measured with, if the run has one."""
    guard: Callable[[], object] = bool
    """Raises UserError if the run folder was moved or removed; called before each file is written.
    """
    evaluation: Evaluation | None = None
    """What drawn images are evaluated with, if they are."""

    @property
    def criterion(self) -> Criterion:
        """What the best checkpoint has the lowest value of."""
        return choose_criterion(self.run.config.train, self.validation is not None)

    @property
    def layout(self) -> Layout:
        """How the train state is distributed over the devices."""
        return choose_layout(self.run.config.train)


@contextmanager
def open_job(
    opening: Opening,
    parts: Parts,
    source: ImageSource,
    held_out: ImageSource | None = None,
    features: FeatureNetwork | None = None,
) -> Iterator[Job]:
    """Open the job of a run. Inside this context, checkpoints are open and signals are handled.

    `held_out` has the images for a validation loss, if there are any, and `features` are those to
    evaluate drawn images in, if they are evaluated.
    """
    run, held = opening.run, opening.held
    guard = held.check if held is not None else bool
    train, validation = run.config.train, None
    if held_out is not None:
        loss_fn = build_loss(run.config, parts)
        validation = make_validation(run.config, parts, loss_fn, source, held_out)
    with ExitStack() as stack:
        # Of several processes, none ends alone: they agree on a step.
        stop = stack.enter_context(StopRequest(None if is_distributed() else BEFORE))
        checkpoints = stack.enter_context(
            open_checkpoints(
                run.checkpoints,
                keep=train.keep_checkpoints,
                keep_best=train.keep_best,
                keep_every=train.keep_every,
                guard=guard,
            )
        )
        loggers = stack.enter_context(open_loggers(run))
        generate = make_generate_fn(parts, run.config.sample, run.image_shape)
        evaluation = None if features is None else open_evaluation(run.config, features, source)
        yield Job(
            run,
            parts,
            source,
            announce_compilation(compile_step(run.config, parts), "the training step"),
            announce_compilation(generate, "the sampler"),
            checkpoints,
            loggers,
            Log(run.metrics),
            stop,
            Attempts(),
            put_data_on_devices(train, source),
            Agreement(),
            validation,
            guard,
            evaluation,
        )


def choose_layout(train: TrainConfig) -> Layout:
    """Choose how the train state is distributed over the devices.

    Raises UserError if the batch does not divide over the devices.
    """
    return Layout(choose_mode(train.parallel, train.batch_size, train.fsdp), train.fsdp)


def put_data_on_devices(train: TrainConfig, source: ImageSource) -> Any | None:
    """Copy all images and labels to every device, if the settings ask for it."""
    if not fits_on_device(source, train.data_on_device):
        return None
    mode = choose_layout(train).mode
    return replicate((source.images, np.asarray(source.labels, np.int32)), mode)


def build_loss(config: Config, parts: Parts) -> LossFn:
    """Build the loss function of `config`, which returns one loss per image."""
    diffusion = config.diffusion
    variance = diffusion.variance
    return make_loss_fn(
        recompute_segments(parts.network.apply_fn, config.train.remat),
        parts.schedule,
        prediction_type=diffusion.prediction_type,
        loss_type=diffusion.loss_type,
        weighting=diffusion.weighting,
        min_snr_gamma=diffusion.min_snr_gamma,
        p2_gamma=diffusion.p2_gamma,
        p2_k=diffusion.p2_k,
        objective=diffusion.objective,
        vb_weight=diffusion.vb_weight,
        variance=config.sample.variance if variance == "fixed" else variance,
    )


def build_step(config: Config, parts: Parts, axis_name: str | None) -> TrainStep:
    """Build the pure train step of `config`, or a scan over steps_per_call of them."""
    diffusion, train = config.diffusion, config.train
    update = make_update(
        build_loss(config, parts),
        parts.optimizer,
        ema=parts.ema,
        more_ema=parts.more_ema,
        posthoc_ema=parts.posthoc_ema,
        accumulate=train.accumulate,
        axis_name=axis_name,
    )
    timestep_fn = make_timestep_fn(
        diffusion.timestep_sampling,
        parts.schedule,
        log_normal_mean=diffusion.log_normal_mean,
        log_normal_std=diffusion.log_normal_std,
    )
    train_step = make_train_step(
        update,
        diffusion.num_timesteps,
        random_flip=config.data.random_flip,
        offset_noise=diffusion.offset_noise,
        self_condition=parts.self_condition,
        class_conditional=parts.num_labels is not None,
        timestep_fn=timestep_fn,
        label_dropout=diffusion.label_dropout,
        null_label=parts.null_label,
        axis_name=axis_name,
    )
    return train_step if train.steps_per_call == 1 else scan_steps(train_step)


def compile_step(config: Config, parts: Parts) -> TrainStep:
    """Compile the train step of `config`, or steps_per_call of them, for all devices."""
    train, several = config.train, config.train.steps_per_call > 1
    in_turn = several and not loops_over_steps()
    built = replace(config, train=replace(train, steps_per_call=1)) if in_turn else config
    step = parallelize(
        lambda axis_name: build_step(built, parts, axis_name),
        choose_layout(train).mode,
        fsdp=train.fsdp,
        batch_axis=1 if several and not in_turn else 0,
    )
    return call_in_turn(step) if in_turn else step
