"""The train state: arrays only."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

Params = Any
EmaFn = Callable[[Params, Params, Int[Array, ""]], Params]
EmaForm = Literal["constant", "ramp", "delayed_ramp", "power"]


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


def make_ema(
    form: EmaForm = "constant",
    decay: float = 0.9999,
    *,
    every: int = 1,
    update_after: int = 0,
    min_decay: float = 0.0,
    inv_gamma: float = 1.0,
    power: float = 2 / 3,
) -> EmaFn:
    """The moving average of the parameters: (ema, params, step) -> ema.

    `params` are those after the update at `step` (0, 1, ...). The average moves where `every`
    divides step, with the decay of `ema_decay`; see there for the forms.

    Ho et al. 2020 leave it to chance whether their average sees the parameters before or after the
    update; ours, with "constant", is the average of those after it, from the initial ones on.
    diffusers' EMAModel is "delayed_ramp", or "power" with its warm-up; ema_pytorch is "power".
    """

    def update(ema: Params, params: Params, step: Int[Array, ""]) -> Params:
        rate = ema_rate(form, decay, step, update_after=update_after, min_decay=min_decay,
                        inv_gamma=inv_gamma, power=power)  # fmt: skip
        return step_towards(ema, params, jnp.where(step % every == 0, rate, 0))

    return update


def ema_rate(
    form: EmaForm,
    decay: float,
    step: Int[Array, ""],
    *,
    update_after: int = 0,
    min_decay: float = 0.0,
    inv_gamma: float = 1.0,
    power: float = 2 / 3,
) -> Float[Array, ""]:
    """1 - the decay at `step`, which keeps its digits in float32 where the decay is close to 1.

    constant: the decay is `decay`. ramp: min(decay, (1 + step) / (10 + step)), as TensorFlow's.
    The others have n = step - update_after and copy the parameters while n <= 0; then the decay is
    (1 + n) / (10 + n) (delayed_ramp) or 1 - (1 + n / inv_gamma)^-power (power), and in
    [min_decay, decay].
    """
    n = jnp.asarray(step - update_after if form in ("delayed_ramp", "power") else step, float)
    n_positive = jnp.maximum(n, 0)
    match form:
        case "constant":
            return jnp.asarray(1 - decay, float)
        case "ramp":
            return jnp.maximum(1 - decay, 9 / (10 + n))
        case "delayed_ramp":
            rate = 9 / (10 + n_positive)
        case "power":
            rate = (1 + n_positive / inv_gamma) ** -power
    return jnp.where(n <= 0, 1.0, jnp.clip(rate, 1 - decay, 1 - min_decay))


def step_towards(ema: Params, params: Params, rate: Float[Array, ""]) -> Params:
    """ema + rate * (params - ema); at rate 1 exactly `params`."""

    def step(e: Array, p: Array) -> Array:
        return jnp.where(rate == 1, p, e + rate.astype(e.dtype) * (p - e))

    return jax.tree.map(step, ema, params)
