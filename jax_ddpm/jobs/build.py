"""Build the functions and tables that train and sample a run from its configuration."""

from collections.abc import Mapping
from math import inf
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from jax_ddpm.config.effects import Circumstances, require_effects
from jax_ddpm.config.run import (
    Config,
    DataConfig,
    DiffusionConfig,
    SampleConfig,
    SourceConfig,
    TrainConfig,
    make_betas,
)
from jax_ddpm.config.sample import sampling_timesteps, visits_timesteps
from jax_ddpm.data.holdout import split_off
from jax_ddpm.data.sources import ImageSource, Split, open_source
from jax_ddpm.errors import UserError
from jax_ddpm.models import CustomConfig, NetworkFns, adapt_network, make_network
from jax_ddpm.optim.averages import EmaFn, Params, make_ema, make_posthoc_ema
from jax_ddpm.optim.optimizers import make_learning_rate, make_optimizer
from jax_ddpm.process.denoiser import rescale_timesteps
from jax_ddpm.process.grids import continuous_levels
from jax_ddpm.process.levels import Level, level_at, level_of_sigma, level_of_t
from jax_ddpm.process.schedules import Schedule, make_schedule
from jax_ddpm.process.timesteps import empty_history
from jax_ddpm.process.types import GradientFn
from jax_ddpm.samplers import SAMPLERS, Sampler
from jax_ddpm.samplers.registry import Options
from jax_ddpm.training.state import TrainState, create_state

TRAINING = 1  # folded into the seed's key; the unfolded key draws the initial parameters


class Parts(NamedTuple):
    """The functions and tables that a configuration describes."""

    network: NetworkFns
    schedule: Schedule
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation
    ema: EmaFn = make_ema()
    diffusion: DiffusionConfig = DiffusionConfig()
    num_labels: int | None = None
    self_condition: bool = False
    whole_timesteps: bool = False
    more_ema: tuple[EmaFn, ...] = ()
    posthoc_ema: tuple[EmaFn, ...] = ()

    @property
    def learned_variance(self) -> bool:
        """Whether the second half of the network's output channels holds the variance."""
        return self.diffusion.variance != "fixed"

    @property
    def null_label(self) -> int | None:
        """The network's label for "no class", which is its last, if it has one."""
        return self.num_labels if self.diffusion.label_dropout else None

    def init_state(self, key: Key[Array, ""]) -> TrainState:
        """Make the train state before the first step, with random parameters from `key`."""
        return self.start_state(self.network.init(key))

    def start_state(self, params: Params) -> TrainState:
        """Make the train state before the first step from given `params`."""
        state = create_state(
            params,
            self.optimizer,
            num_more_ema=len(self.more_ema),
            num_posthoc_ema=len(self.posthoc_ema),
        )
        by_loss = self.diffusion.timestep_sampling == "importance"
        history = empty_history(self.schedule.num_timesteps) if by_loss else None
        return state.replace(loss_history=history)


def build(
    config: Config,
    image_shape: tuple[int, int, int],
    dtype: Any = None,
    *,
    network: tuple[Any, Any] | None = None,
) -> Parts:
    """Build the network, schedule, optimiser and averages of `config` for images of `image_shape`.

    `dtype`, such as float64, replaces the dtypes of tables and network. `network` is the user's own
    (init, apply_fn), for a `config` whose model is `CustomConfig`. Raises UserError if the network
    does not take such images.
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
    schedule = build_schedule(diffusion, dtype)
    fns = build_network(config, image_shape, jnp.dtype(dtype or model.compute_dtype), network)
    ema, *more_ema = make_averages(train)
    return Parts(
        fns,
        schedule,
        learning_rate,
        optimizer,
        ema,
        diffusion,
        count_classes(config),
        model.self_conditioned,
        config.whole_timesteps,
        more_ema=tuple(more_ema),
        posthoc_ema=tuple(map(make_posthoc_ema, train.posthoc_ema)),
    )


def build_schedule(diffusion: DiffusionConfig, dtype: Any = None) -> Schedule:
    """Build the tables of `diffusion`, in float32 unless there is a `dtype`."""
    return make_schedule(
        make_betas(diffusion),
        dtype=jnp.dtype(dtype or "float32"),
        clipped_log_variance=diffusion.clipped_log_variance,
    )


def open_data(data: SourceConfig, split: Split = "train") -> ImageSource:
    """Open the images that `data` describes, without those that training holds out.

    Raises UserError if they cannot be opened.
    """
    source = open_source(
        data.name,
        data.path,
        split,
        image_size=data.image_size,
        channels=data.channels,
        crop=data.crop,
        resize=data.resize,
        skip_bad=data.skip_bad,
        follow_links=data.follow_links,
        max_value=data.max_value,
    )
    fraction = data.holdout if isinstance(data, DataConfig) and split == "train" else 0.0
    return split_off(source, fraction)[0]


def count_classes(config: Config) -> int | None:
    """Count the network's labels, except the one for "no class"; None without labels."""
    labels = config.model.num_labels
    return labels - 1 if labels is not None and config.diffusion.label_dropout else labels


def make_averages(train: TrainConfig) -> tuple[EmaFn, ...]:
    """Make the moving averages of `train`: one for ema_decay, then one for each of ema_decays."""
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


def build_network(
    config: Config, image_shape: tuple[int, int, int], dtype: Any, own: tuple[Any, Any] | None
) -> NetworkFns:
    """Build the network of `config`, or adapt the user's own, and check it with the image shape."""
    out_channels = image_shape[-1] * (2 if config.diffusion.variance != "fixed" else 1)
    if own is None:
        network = make_network(config.model, image_shape, out_channels=out_channels, dtype=dtype)
    else:
        require_custom(config)
        network = adapt_network(own)
    require_output(network, config, image_shape, out_channels)
    if config.diffusion.rescale_timesteps:
        rescaled = rescale_timesteps(network.apply_fn, config.diffusion.num_timesteps)
        return network._replace(apply_fn=rescaled)
    return network


def require_custom(config: Config) -> None:
    """Raise UserError unless `config` suits a network of the user's own."""
    if not isinstance(config.model, CustomConfig):
        raise UserError(
            f"model is {type(config.model).__name__}, but it must be CustomConfig() for a network "
            "of your own"
        )
    if config.train.remat != "none":
        raise UserError(
            f"--train.remat is {config.train.remat}, but it must be none for a network of your "
            "own: use jax.checkpoint inside it"
        )


def require_output(
    network: NetworkFns, config: Config, image_shape: tuple[int, int, int], out_channels: int
) -> None:
    """Raise UserError unless the network takes such images and returns `out_channels` channels."""
    shape = "x".join(map(str, image_shape))
    try:
        found = infer_output_shape(network, image_shape, config.model.num_labels)
    except (ValueError, TypeError) as error:
        raise UserError(f"the network does not take images of {shape}: {error}") from error
    if found != (*image_shape[:2], out_channels):
        raise UserError(
            f"the network returns {'x'.join(map(str, found))} for images of {shape}, but must "
            f"return {out_channels} channels (see --model, --data.channels, --data.image-size and "
            "--diffusion.variance)"
        )


def infer_output_shape(
    network: NetworkFns, image_shape: tuple[int, int, int], num_labels: int | None
) -> tuple[int, ...]:
    """Infer (height, width, channels) of the network's output from shapes alone."""

    def output(key: Key[Array, ""]) -> Any:
        x_t, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
        label = None if num_labels is None else t
        return network.apply_fn(network.init(key), x_t, t, label=label)

    return jax.eval_shape(output, jax.random.key(0)).shape[1:]


def make_sampling_levels(
    sample: SampleConfig, schedule: Schedule, *, whole_timesteps: bool = False
) -> Level:
    """Make the S + 1 noise levels that sampling visits, from noise to the clean image.

    With `whole_timesteps`, every level is that of a timestep.
    """
    if visits_timesteps(sample):
        return level_at(schedule, jnp.asarray(sampling_timesteps(sample, schedule.num_timesteps)))
    return continuous_levels(schedule, sample.num_steps, sample.spacing, whole=whole_timesteps)


def list_levels(parts: Parts, sample: SampleConfig) -> Level:
    """List the noise levels that sampling with `parts` visits."""
    return make_sampling_levels(sample, parts.schedule, whole_timesteps=parts.whole_timesteps)


def check_effects(config: Config, sample: SampleConfig, changes: Mapping[str, Any]) -> None:
    """Raise UserError if one of the user's `changes` has no effect on images of a run of `config`.

    `sample` are the settings with these changes.
    """
    levels = make_sampling_levels(
        sample,
        build_schedule(config.diffusion),
        whole_timesteps=config.whole_timesteps,
    )
    learned = config.diffusion.variance != "fixed"
    require_effects(sample, changes, Circumstances(levels, learned))


def make_sampler(
    sample: SampleConfig,
    diffusion: DiffusionConfig,
    schedule: Schedule,
    num_steps: int,
    gradient_fn: GradientFn | None = None,
) -> Sampler:
    """Make the sampler that `sample` names, for a grid of `num_steps` steps.

    A learned variance takes precedence over `sample.variance`. `gradient_fn` is a classifier's
    gradient, for samplers that add it to their mean.
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
