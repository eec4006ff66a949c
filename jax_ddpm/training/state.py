"""The train state: arrays only."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from jax_ddpm.posthoc_ema import gamma_from_sigma_rel, power_function_rate
from jax_ddpm.timesteps import LossHistory

Params = Any
EmaFn = Callable[[Params, Params, Int[Array, ""]], Params]
EmaForm = Literal["constant", "ramp", "delayed_ramp", "power", "half_life"]


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
    return starting_from(params, state)


def starting_from(params: Params, state: TrainState) -> TrainState:
    """`state` with `params` in place of its own, and every moving average a copy of them."""

    def copy(average: Params) -> Params:
        return jax.tree.map(jnp.copy, params)  # of its own: a buffer can be donated only once

    return state.replace(
        params=params,
        ema_params=copy(state.ema_params),
        more_ema=tuple(map(copy, state.more_ema)),
        posthoc_ema=tuple(map(copy, state.posthoc_ema)),
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
    half_life: float = math.inf,
    rampup: float | None = None,
) -> EmaFn:
    """The moving average of the parameters: (ema, params, step) -> ema.

    `params` are those after the update at `step` (0, 1, ...). The average moves where `every`
    divides step, with the decay of `ema_decay`; see there for the forms.

    Ho et al. 2020 leave it to chance whether their average sees the parameters before or after the
    update; ours, with "constant", is the average of those after it, from the initial ones on.
    diffusers' EMAModel is "delayed_ramp", or "power" with its warm-up; ema_pytorch and k-diffusion
    are "power"; Karras et al. 2022 is "half_life".
    """

    def update(ema: Params, params: Params, step: Int[Array, ""]) -> Params:
        rate = ema_rate(form, decay, step, update_after=update_after, min_decay=min_decay,
                        inv_gamma=inv_gamma, power=power, half_life=half_life,
                        rampup=rampup)  # fmt: skip
        return step_towards(ema, params, jnp.where(step % every == 0, rate, 0))

    return update


def make_posthoc_ema(sigma_rel: float) -> EmaFn:
    """The power-function average of relative width `sigma_rel`: (ema, params, step) -> ema.

    `params` are those after the update at `step` (0, 1, ...), which is the (step + 1)-th. Raises
    ValueError unless 0 < sigma_rel < 0.2887. Source: Karras et al. 2024, Eq. 127.
    """
    gamma = gamma_from_sigma_rel(sigma_rel)

    def update(ema: Params, params: Params, step: Int[Array, ""]) -> Params:
        return step_towards(ema, params, power_function_rate(step + 1, gamma))

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
    half_life: float = math.inf,
    rampup: float | None = None,
) -> Float[Array, ""]:
    """1 - the decay at `step`, which keeps its digits in float32 where the decay is close to 1.

    constant: the decay is `decay`. ramp: min(decay, (1 + step) / (10 + step)), as TensorFlow's.
    half_life: 0.5^(1 / min(half_life, rampup * step)) with the half-life in steps (Karras et al.
    2022, their training loop), whatever `decay` is. delayed_ramp and power have n = step -
    update_after and copy the parameters while n <= 0; then the decay is (1 + n) / (10 + n)
    (delayed_ramp) or 1 - (1 + n / inv_gamma)^-power (power), and in [min_decay, decay].
    """
    n = jnp.asarray(step - update_after if form in ("delayed_ramp", "power") else step, float)
    n_positive = jnp.maximum(n, 0)
    match form:
        case "constant":
            return jnp.asarray(1 - decay, float)
        case "ramp":
            return jnp.maximum(1 - decay, 9 / (10 + n))
        case "half_life":
            per_step = jnp.full_like(n, 1 / half_life)
            if rampup is not None:
                per_step = jnp.maximum(per_step, 1 / (rampup * n))  # infinite at first: a copy
            return -jnp.expm1(-math.log(2) * per_step)
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
