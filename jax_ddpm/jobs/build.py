"""From the configuration of a run to the parts that train and sample it."""

from math import inf
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jax_ddpm.config.run import Config, DiffusionConfig, SampleConfig, SourceConfig, TrainConfig
from jax_ddpm.config.sample import sampling_timesteps, visits_timesteps
from jax_ddpm.data.sources import ImageSource, Split, open_source
from jax_ddpm.errors import UserError
from jax_ddpm.models import NetworkFns, make_network
from jax_ddpm.optim.averages import EmaFn, make_ema, make_posthoc_ema
from jax_ddpm.optim.optimizers import make_learning_rate, make_optimizer
from jax_ddpm.process.denoiser import rescale_timesteps
from jax_ddpm.process.grids import continuous_levels
from jax_ddpm.process.levels import Level, level_at, level_of_sigma, level_of_t
from jax_ddpm.process.schedules import Schedule, named_schedule
from jax_ddpm.process.timesteps import empty_history
from jax_ddpm.process.types import GradientFn
from jax_ddpm.samplers import SAMPLERS, Sampler
from jax_ddpm.samplers.registry import Options
from jax_ddpm.training.state import TrainState, create_state


class Parts(NamedTuple):
    """What a configuration describes, as functions and tables."""

    network: NetworkFns
    schedule: Schedule
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    ema: EmaFn = make_ema()
    diffusion: DiffusionConfig = DiffusionConfig()
    num_labels: int | None = None
    self_condition: bool = False
    more_ema: tuple[EmaFn, ...] = ()
    posthoc_ema: tuple[EmaFn, ...] = ()

    @property
    def learned_variance(self) -> bool:
        """Whether the second half of the output's channels is a variance."""
        return self.diffusion.variance != "fixed"

    @property
    def null_label(self) -> int | None:
        """The network's label for "no class", the one after those of the data, if it has one."""
        return self.num_labels if self.diffusion.label_dropout else None

    def init_state(self, key: Key[Array, ""]) -> TrainState:
        """The train state before the first step."""
        state = create_state(
            self.network.init(key),
            self.optimizer,
            num_more_ema=len(self.more_ema),
            num_posthoc_ema=len(self.posthoc_ema),
        )
        by_loss = self.diffusion.timestep_sampling == "importance"
        history = empty_history(self.schedule.num_timesteps) if by_loss else None
        return state.replace(loss_history=history)


def build(config: Config, image_shape: tuple[int, int, int], dtype: Any = None) -> Parts:
    """Network, schedule and optimiser of `config` for images of `image_shape`.

    With `dtype` (float64, where JAX allows it) tables and network are of that type. Raises
    UserError if the network does not take such images.
    """
    train, model, diffusion = config.train, config.model, config.diffusion
    learning_rate = make_learning_rate(
        train.learning_rate,
        warmup_steps=train.warmup_steps,
        decay=train.decay,
        num_steps=train.num_steps,
    )
    optimizer = make_optimizer(
        learning_rate,
        optimizer=train.optimizer,
        betas=train.betas,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        clip_eps=train.clip_eps,
    )
    schedule = named_schedule(
        diffusion.schedule,
        diffusion.num_timesteps,
        dtype=jnp.dtype(dtype or "float32"),
        clipped_log_variance=diffusion.clipped_log_variance,
        zero_terminal_snr=diffusion.zero_terminal_snr,
    )
    network = build_network(config, image_shape, jnp.dtype(dtype or model.compute_dtype))
    ema, *more_ema = make_averages(train)
    return Parts(
        network,
        schedule,
        learning_rate,
        optimizer,
        ema,
        diffusion,
        count_classes(config),
        model.self_conditioned,
        more_ema=tuple(more_ema),
        posthoc_ema=tuple(map(make_posthoc_ema, train.posthoc_ema)),
    )


def open_data(data: SourceConfig, split: Split = "train") -> ImageSource:
    """The images that `data` describes. Raises UserError if they cannot be had."""
    return open_source(
        data.name,
        data.path,
        split,
        image_size=data.image_size,
        channels=data.channels,
        crop=data.crop,
        resize=data.resize,
        skip_bad=data.skip_bad,
    )


def count_classes(config: Config) -> int | None:
    """The classes of the data that the network knows: all but that for "no class", if it has it."""
    labels = config.model.num_labels
    return labels - 1 if labels is not None and config.diffusion.label_dropout else labels


def make_averages(train: TrainConfig) -> tuple[EmaFn, ...]:
    """The averages of `train`: with ema_decay, then with each of ema_decays."""
    return tuple(
        make_ema(
            train.ema_form,
            decay,
            every=train.ema_every,
            update_after=train.ema_update_after,
            inv_gamma=train.ema_inv_gamma,
            power=train.ema_power,
            half_life=train.ema_half_life / train.batch_size,
            rampup=train.ema_rampup,
        )
        for decay in (train.ema_decay, *train.ema_decays)
    )


def build_network(config: Config, image_shape: tuple[int, int, int], dtype: Any) -> NetworkFns:
    """The network of `config`, checked against the shape of the images."""
    shape = "x".join(map(str, image_shape))
    learned = config.diffusion.variance != "fixed"
    out_channels = image_shape[-1] * (2 if learned else 1)
    network = make_network(config.model, image_shape, out_channels=out_channels, dtype=dtype)
    try:
        found = infer_output_shape(network, image_shape, config.model.num_labels)
    except (ValueError, TypeError) as error:
        raise UserError(f"the network does not take images of {shape}: {error}") from error
    if found != (*image_shape[:2], out_channels):
        raise UserError(
            f"the network makes {'x'.join(map(str, found))} of images of {shape}, but needs to "
            f"give {out_channels} channels (see --model, --data.channels, --data.image-size and "
            "--diffusion.variance)"
        )
    if config.diffusion.rescale_timesteps:
        rescaled = rescale_timesteps(network.apply_fn, config.diffusion.num_timesteps)
        return network._replace(apply_fn=rescaled)
    return network


def infer_output_shape(
    network: NetworkFns, image_shape: tuple[int, int, int], num_labels: int | None
) -> tuple[int, ...]:
    """(height, width, channels) of what the network makes of an image, without computing it."""

    def output(key: Key[Array, ""]) -> Any:
        x_t, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)  # shapes alone, in here
        label = None if num_labels is None else t
        return network.apply_fn(network.init(key), x_t, t, label=label)

    return jax.eval_shape(output, jax.random.key(0)).shape[1:]


def make_sampling_levels(sample: SampleConfig, schedule: Schedule) -> Level:
    """The S + 1 levels that `sample` visits, from noise to the clean image."""
    match sample.spacing:
        case ("log_snr" | "karras") as spacing if not visits_timesteps(sample):
            return continuous_levels(schedule, sample.num_steps, spacing)
    return level_at(schedule, jnp.asarray(sampling_timesteps(sample, schedule.num_timesteps)))


def make_sampler(
    sample: SampleConfig,
    diffusion: DiffusionConfig,
    schedule: Schedule,
    num_steps: int,
    gradient_fn: GradientFn | None = None,
) -> Sampler:
    """The sampler that `sample` names, for a grid of `num_steps` steps.

    A learned variance goes before a fixed one. `gradient_fn` is a classifier's, for samplers that
    take it in their mean.
    """
    learned = diffusion.variance
    options = Options(
        num_steps,
        level_of_t(schedule),
        level_of_sigma(schedule),
        variance=sample.variance if learned == "fixed" else learned,
        eta=sample.eta,
        churn=sample.churn,
        churn_min=sample.churn_min,
        churn_max=inf if sample.churn_max is None else sample.churn_max,
        churn_noise=sample.churn_noise,
        gradient_fn=gradient_fn,
    )
    return SAMPLERS[sample.sampler].make(options)
