"""The train state: arrays only."""

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int

from jax_ddpm.optim.averages import Params
from jax_ddpm.process.timesteps import LossHistory


class Skipped(struct.PyTreeNode):
    """How many steps changed nothing because their numbers were not finite."""

    total: Int[Array, ""]
    in_a_row: Int[Array, ""]  # the newest ones


class TrainState(struct.PyTreeNode):
    """What training carries on and what a checkpoint holds: no functions, no keys."""

    step: Int[Array, ""]  # also counts the skipped ones
    params: Params
    ema_params: Params
    opt_state: optax.OptState
    skipped: Skipped
    more_ema: tuple[Params, ...] = ()
    posthoc_ema: tuple[Params, ...] = ()
    loss_history: LossHistory | None = None  # for importance sampling of timesteps


def create_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    num_more_ema: int = 0,
    num_posthoc_ema: int = 0,
) -> TrainState:
    """The state before the first step; every moving average starts as a copy of `params`."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=params,
        opt_state=optimizer.init(params),
        skipped=Skipped(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)),
        more_ema=(params,) * num_more_ema,
        posthoc_ema=(params,) * num_posthoc_ema,
    )
    return restart_from(params, state)


def restart_from(params: Params, state: TrainState) -> TrainState:
    """`state` with `params` in place of its own, and every moving average a copy of them."""

    def copy(average: Params) -> Params:
        return jax.tree.map(jnp.copy, params)  # of its own: a buffer can be donated only once

    return state.replace(
        params=params,
        ema_params=copy(state.ema_params),
        more_ema=tuple(map(copy, state.more_ema)),
        posthoc_ema=tuple(map(copy, state.posthoc_ema)),
    )
