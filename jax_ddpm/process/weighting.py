"""How much the loss at each timestep counts."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_ddpm.errors import check_choice
from jax_ddpm.process.predictions import PREDICTION_TYPES, check_prediction_type
from jax_ddpm.process.schedules import Schedule

Table = Float[Array, " T"]


class WeightSettings(NamedTuple):
    """The constants in the weightings."""

    gamma: float
    p2_gamma: float
    p2_k: float


# The weight of the squared error of x_0, as a function of snr = signal^2 / sigma^2. "constant" has
# none: its weight is 1, whatever the network predicts.
WEIGHTINGS: dict[str, Callable[[Table, WeightSettings], Table] | None] = {
    "constant": None,
    "snr": lambda snr, settings: snr,
    "truncated_snr": lambda snr, settings: jnp.maximum(snr, 1),
    "min_snr": lambda snr, settings: jnp.minimum(snr, settings.gamma),
    "soft_min_snr": lambda snr, settings: snr * settings.gamma / (snr + settings.gamma),
    "p2": lambda snr, settings: snr / (settings.p2_k + snr) ** settings.p2_gamma,
}


if TYPE_CHECKING:
    Weighting = str
else:
    Weighting = Literal[tuple(WEIGHTINGS)]


def loss_weight(
    schedule: Schedule,
    weighting: str = "constant",
    prediction_type: str = "eps",
    gamma: float = 5.0,
    *,
    p2_gamma: float = 1.0,
    p2_k: float = 1.0,
) -> Table:
    """The weight of the loss at each timestep [T], with snr = signal^2 / sigma^2.

    constant: 1. The others define the weight of the squared error of x_0. The weight of the error
    of eps is then that weight divided by snr, and of v divided by snr + 1, so that all three are
    the same loss. snr: snr. truncated_snr: max(snr, 1) (Salimans & Ho 2022, section 4). min_snr:
    min(snr, gamma) (Hang et al. 2023, section 3.4). soft_min_snr: snr gamma / (snr + gamma)
    (Crowson et al. 2024, with gamma = 4). p2: snr / (p2_k + snr)^p2_gamma, which its authors give
    as a weight of the error of eps (Choi et al. 2022, Eq. 8).

    Finite for x_0 and v. Where snr is 0, only "constant" gives the error of eps a weight. Raises
    UserError for an unknown name.

    Examples:
        >>> import jax_ddpm as jd
        >>> weights = jd.loss_weight(jd.named_schedule("linear", 1000), "min_snr", "x_0")
        >>> weights.shape, float(weights.max())  # gamma is 5
        ((1000,), 5.0)
    """
    weighting = check_choice("weighting", weighting, WEIGHTINGS)
    error_ratio = PREDICTION_TYPES[check_prediction_type(prediction_type)].error_ratio
    snr = (schedule.sqrt_alphas_cumprod / schedule.sqrt_one_minus_alphas_cumprod) ** 2
    of_x_0 = WEIGHTINGS[weighting]
    if of_x_0 is None:
        return jnp.ones_like(snr)
    return of_x_0(snr, WeightSettings(gamma, p2_gamma, p2_k)) / error_ratio(snr)
