"""The train state: arrays only."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

Params = Any


class TrainState(struct.PyTreeNode):
    """What training carries on and what a checkpoint holds: no functions, no keys."""

    step: Int[Array, ""]
    params: Params
    ema_params: Params
    opt_state: optax.OptState


def create_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; the moving average starts as a copy of `params`."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),  # a copy: a buffer can be donated only once
        opt_state=optimizer.init(params),
    )


def ema_decay_at(step: Int[Array, ""], decay: float, warmup: bool) -> Float[Array, ""]:
    """The decay at `step` (0, 1, ...): constant, or min(decay, (1 + step) / (10 + step))."""
    if not warmup:
        return jnp.asarray(decay)
    return jnp.minimum(decay, (1 + step) / (10 + step))


def ema_update(ema: Params, params: Params, decay: Float[Array, ""]) -> Params:
    """decay * ema + (1 - decay) * params, written as a step towards `params`."""
    return jax.tree.map(lambda e, p: e + (1 - decay).astype(e.dtype) * (p - e), ema, params)
