"""From the configuration of a run to the parts that train and sample it."""

from typing import NamedTuple

import jax
import optax
from jaxtyping import Array, Key

from jax_ddpm.config import Config, SampleConfig
from jax_ddpm.models import NetworkFns, make_network
from jax_ddpm.samplers import Sampler, ddim, ddpm
from jax_ddpm.schedules import Schedule, named_schedule
from jax_ddpm.training.optim import make_learning_rate, make_optimizer
from jax_ddpm.training.state import TrainState, create_state


class Parts(NamedTuple):
    """What a configuration describes, as functions and tables."""

    network: NetworkFns
    schedule: Schedule
    learning_rate: optax.Schedule
    optimizer: optax.GradientTransformation

    def init_state(self, key: Key[Array, ""]) -> TrainState:
        """The train state before the first step."""
        return create_state(self.network.init(key), self.optimizer)


def build(config: Config, image_shape: tuple[int, int, int]) -> Parts:
    """Network, schedule and optimiser of `config` for images of `image_shape`."""
    train = config.train
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
    )
    schedule = named_schedule(config.diffusion.schedule, config.diffusion.num_timesteps)
    module = config.model.module(image_shape[-1], jax.numpy.dtype(config.model.compute_dtype))
    return Parts(make_network(module, image_shape), schedule, learning_rate, optimizer)


def make_sampler(sample: SampleConfig) -> Sampler:
    """The sampler that `sample` names."""
    match sample.sampler:
        case "ddpm":
            return ddpm(sample.variance)
        case "ddim":
            return ddim(sample.eta)
