"""Moving averages of the parameters, in every form that is in use."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_ddpm.optim.posthoc_ema import gamma_from_sigma_rel, power_function_rate

Params = Any


EmaFn = Callable[[Params, Params, Int[Array, ""]], Params]


EmaForm = Literal["constant", "ramp", "delayed_ramp", "power", "half_life"]


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
