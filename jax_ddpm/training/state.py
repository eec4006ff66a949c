"""The train state, which consists only of arrays."""

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int

from jax_ddpm.optim.averages import Params
from jax_ddpm.process.timesteps import LossHistory


class Skipped(struct.PyTreeNode):
    """The number of steps that were skipped because a loss or gradient was not finite."""

    total: Int[Array, ""]
    in_a_row: Int[Array, ""]  # since the last good step


class TrainState(struct.PyTreeNode):
    """The arrays that training carries from step to step, and that a checkpoint holds."""

    step: Int[Array, ""]  # counts skipped steps too
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
    """Make the state before the first step; every moving average starts as a copy of `params`.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> state = jd.create_state({"kernel": jax.numpy.ones((3, 3))}, jd.make_optimizer(2e-4))
        >>> int(state.step), state.ema_params["kernel"].shape
        (0, (3, 3))
    """

    def copy_params() -> Params:
        return jax.tree.map(jnp.copy, params)  # separate copies: a buffer is donated only once

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=copy_params(),
        opt_state=optimizer.init(params),
        skipped=Skipped(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)),
        more_ema=tuple(copy_params() for _ in range(num_more_ema)),
        posthoc_ema=tuple(copy_params() for _ in range(num_posthoc_ema)),
    )
