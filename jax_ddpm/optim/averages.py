"""Moving averages of the parameters, in all common forms."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_ddpm.errors import check_choice
from jax_ddpm.optim.posthoc_ema import gamma_from_sigma_rel, power_function_rate

Params = Any
Step = Int[Array, ""] | int
Steps = Int[Array, "..."] | int
EmaFn = Callable[[Params, Params, Step], Params]
Rates = Float[Array, "..."]


class DecaySettings(NamedTuple):
    """What the forms of the decay depend on; see `ema_rate`."""

    decay: float = 0.9999
    update_after: int = 0
    min_decay: float = 0.0
    inv_gamma: float = 1.0
    power: float = 2 / 3
    half_life: float = math.inf
    rampup: float | None = None


def _rate_constant(settings: DecaySettings, step: Steps) -> Rates:
    return jnp.asarray(1 - settings.decay, float)


def _rate_ramp(settings: DecaySettings, step: Steps) -> Rates:
    return jnp.maximum(1 - settings.decay, 9 / (10 + jnp.asarray(step, float)))


def _rate_half_life(settings: DecaySettings, step: Steps) -> Rates:
    n = jnp.asarray(step, float)
    per_step = jnp.full_like(n, 1 / settings.half_life)
    if settings.rampup is not None:
        per_step = jnp.maximum(per_step, 1 / (settings.rampup * n))  # infinite at first: a copy
    return -jnp.expm1(-math.log(2) * per_step)


def _rate_delayed_ramp(settings: DecaySettings, step: Steps) -> Rates:
    n = jnp.asarray(step - settings.update_after, float)
    return _bound_rate(settings, n, 9 / (10 + jnp.maximum(n, 0)))


def _rate_power(settings: DecaySettings, step: Steps) -> Rates:
    n = jnp.asarray(step - settings.update_after, float)
    rate = (1 + jnp.maximum(n, 0) / settings.inv_gamma) ** -settings.power
    return _bound_rate(settings, n, rate)


def _bound_rate(settings: DecaySettings, n: Rates, rate: Rates) -> Rates:
    return jnp.where(n <= 0, 1.0, jnp.clip(rate, 1 - settings.decay, 1 - settings.min_decay))


EMA_FORMS: dict[str, Callable[[DecaySettings, Steps], Rates]] = {
    "constant": _rate_constant,
    "ramp": _rate_ramp,
    "delayed_ramp": _rate_delayed_ramp,
    "power": _rate_power,
    "half_life": _rate_half_life,
}

if TYPE_CHECKING:
    EmaForm = str
else:
    EmaForm = Literal[tuple(EMA_FORMS)]


def make_ema(
    form: str = "constant",
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

    `params` are those after the update at `step` (0, 1, ...). The average moves at every
    `every`-th step, with the rate of `ema_rate`, which explains the forms.

    Ho et al. 2020 do not fix whether their average sees the parameters before or after the update.
    Ours, with "constant", averages those after it, starting from the initial ones. diffusers'
    EMAModel is "delayed_ramp", or "power" with its warm-up; ema_pytorch and k-diffusion are
    "power"; Karras et al. 2022 is "half_life". Raises UserError for an unknown form.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> ema, step = jd.make_ema("constant", 0.75), jax.numpy.array(0)
        >>> before, after = {"w": jax.numpy.zeros(2)}, {"w": jax.numpy.ones(2)}
        >>> ema(before, after, step)["w"].tolist()
        [0.25, 0.25]
    """
    rate_of = EMA_FORMS[check_choice("form of the average", form, EMA_FORMS)]
    settings = DecaySettings(decay, update_after, min_decay, inv_gamma, power, half_life, rampup)

    def update(ema: Params, params: Params, step: Step) -> Params:
        rate = rate_of(settings, step)
        return step_towards(ema, params, jnp.where(step % every == 0, rate, 0))

    return update


def make_posthoc_ema(sigma_rel: float) -> EmaFn:
    """The power-function average of relative width `sigma_rel`: (ema, params, step) -> ema.

    `params` are those after the update at `step` (0, 1, ...), which is the (step + 1)-th. Raises
    UserError unless 0 < sigma_rel < 0.2887. Source: Karras et al. 2024, Eq. 127.
    """
    gamma = gamma_from_sigma_rel(sigma_rel)

    def update(ema: Params, params: Params, step: Step) -> Params:
        return step_towards(ema, params, power_function_rate(jnp.asarray(step + 1), gamma))

    return update


def ema_rate(form: str, decay: float, step: Steps, **settings: Any) -> Rates:
    """1 - the decay at `step`, which keeps its digits in float32 where the decay is close to 1.

    constant: the decay is `decay`. ramp: min(decay, (1 + step) / (10 + step)), as TensorFlow's.
    half_life: 0.5^(1 / min(half_life, rampup * step)) with the half-life in steps, whatever `decay`
    is (the training loop of Karras et al. 2022). delayed_ramp and power have n = step -
    update_after and copy the parameters while n <= 0; then the decay is (1 + n) / (10 + n)
    (delayed_ramp) or 1 - (1 + n / inv_gamma)^-power (power), bounded to [min_decay, decay].

    `settings` are the other fields of `DecaySettings`.
    """
    rate_of = EMA_FORMS[check_choice("form of the average", form, EMA_FORMS)]
    return rate_of(DecaySettings(decay, **settings), step)


def step_towards(ema: Params, params: Params, rate: Float[Array, ""]) -> Params:
    """ema + rate * (params - ema); at rate 1 exactly `params`."""

    def step(e: Any, p: Any) -> Array:
        return jnp.where(rate == 1, p, e + rate.astype(e.dtype) * (p - e))

    return jax.tree.map(step, ema, params)
