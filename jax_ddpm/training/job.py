"""What a training job works with: the run folder, the compiled programs, the data, the signals."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from tensorboardX import SummaryWriter

from jax_ddpm import runs
from jax_ddpm.build import Parts
from jax_ddpm.config import Config
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.drawing import GenerateFn, make_generate_fn
from jax_ddpm.runs import Run
from jax_ddpm.timesteps import make_timestep_fn
from jax_ddpm.training import checkpoint, metrics
from jax_ddpm.training.interrupt import StopRequest
from jax_ddpm.training.parallel import choose_mode, parallelize
from jax_ddpm.training.step import TrainStep, make_train_step, make_update


class Job(NamedTuple):
    """A run and everything that works on it."""

    run: Run
    parts: Parts
    source: ImageSource
    train_step: TrainStep
    generate: GenerateFn
    checkpoints: checkpoint.Checkpointer
    board: SummaryWriter
    stop: StopRequest


@contextmanager
def prepared(run: Run, parts: Parts, source: ImageSource) -> Iterator[Job]:
    """The job of `run`; holds its lock, its checkpoints and the signals until it is left."""
    config = run.config
    with ExitStack() as stack:
        stack.enter_context(runs.locked(run))
        checkpoints = stack.enter_context(
            checkpoint.open_checkpoints(
                run.checkpoints,
                keep=config.train.keep_checkpoints,
                keep_best=config.train.keep_best,
            )
        )
        step = checkpoint.latest_step(checkpoints) or 0
        metrics.keep_until(run.metrics, step)
        board = stack.enter_context(SummaryWriter(str(run.tensorboard), purge_step=step + 1))
        stop = stack.enter_context(StopRequest())
        generate = make_generate_fn(parts, config.sample, run.image_shape)
        yield Job(
            run, parts, source, compiled_step(config, parts), generate, checkpoints, board, stop
        )


def compiled_step(config: Config, parts: Parts) -> TrainStep:
    """The train step of `config`, compiled for the local devices."""
    diffusion, train = config.diffusion, config.train
    learned = diffusion.variance != "fixed"

    def make_step(axis_name: str | None) -> TrainStep:
        update = make_update(
            parts.network.apply_fn,
            parts.optimizer,
            parts.schedule,
            ema=parts.ema,
            more_ema=parts.more_ema,
            posthoc_ema=parts.posthoc_ema,
            accumulate=train.accumulate,
            axis_name=axis_name,
            prediction_type=diffusion.prediction_type,
            loss_type=diffusion.loss_type,
            weighting=diffusion.weighting,
            min_snr_gamma=diffusion.min_snr_gamma,
            p2_gamma=diffusion.p2_gamma,
            p2_k=diffusion.p2_k,
            objective=diffusion.objective,
            vb_weight=diffusion.vb_weight,
            variance=diffusion.variance if learned else config.sample.variance,
        )
        return make_train_step(
            update,
            diffusion.num_timesteps,
            random_flip=config.data.random_flip,
            offset_noise=diffusion.offset_noise,
            self_condition=parts.self_condition,
            class_conditional=parts.num_labels is not None,
            timestep_fn=make_timestep_fn(
                diffusion.timestep_sampling,
                parts.schedule,
                log_normal_mean=diffusion.log_normal_mean,
                log_normal_std=diffusion.log_normal_std,
            ),
            label_dropout=diffusion.label_dropout,
            null_label=parts.null_label,
            axis_name=axis_name,
        )

    return parallelize(make_step, choose_mode(config.train.parallel, config.train.batch_size))
