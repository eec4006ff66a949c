"""What a network predicts: eps, x_0 or v, and how each is converted to the others."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_ddpm.errors import check_choice
from jax_ddpm.process.levels import Level
from jax_ddpm.process.shapes import expand
from jax_ddpm.process.types import Images, Prediction


def x_0_from_eps(level: Level, x_t: Images, eps: Images) -> Images:
    """x_0 = (x_t - sigma eps) / signal (Ho et al. 2020, Eq. 15)."""
    return (x_t - expand(level.sigma, x_t) * eps) / expand(level.signal, x_t)


def eps_from_x_0(level: Level, x_t: Images, x_0: Images) -> Images:
    """eps = (x_t - signal x_0) / sigma; not defined for the clean image, sigma = 0."""
    return (x_t - expand(level.signal, x_t) * x_0) / expand(level.sigma, x_t)


def v_from(level: Level, x_0: Images, eps: Images) -> Images:
    """v = signal eps - sigma x_0 (Salimans & Ho 2022, section 4)."""
    return expand(level.signal, x_0) * eps - expand(level.sigma, x_0) * x_0


def x_0_from_v(level: Level, x_t: Images, v: Images) -> Images:
    """x_0 = signal x_t - sigma v (Salimans & Ho 2022, appendix D)."""
    return expand(level.signal, x_t) * x_t - expand(level.sigma, x_t) * v


def eps_from_v(level: Level, x_t: Images, v: Images) -> Images:
    """eps = sigma x_t + signal v (Salimans & Ho 2022, appendix D)."""
    return expand(level.sigma, x_t) * x_t + expand(level.signal, x_t) * v


class OutputKind(NamedTuple):
    """One meaning of a network's output.

    `target(level, x_0, noise)` is what the output is trained to be; `read(output, x_t, level)` is
    the prediction that it makes. The squared error of the output is the one of x_0 times
    `error_ratio(snr)`.
    """

    target: Callable[[Level, Images, Images], Images]
    read: Callable[[Images, Images, Level], Prediction]
    error_ratio: Callable[[Float[Array, " T"]], Float[Array, " T"]]


PREDICTION_TYPES: dict[str, OutputKind] = {
    "eps": OutputKind(
        target=lambda level, x_0, noise: noise,
        read=lambda eps, x_t, level: Prediction(x_0_from_eps(level, x_t, eps), eps),
        error_ratio=lambda snr: snr,
    ),
    "x_0": OutputKind(
        target=lambda level, x_0, noise: x_0,
        read=lambda x_0, x_t, level: Prediction(x_0, eps_from_x_0(level, x_t, x_0)),
        error_ratio=jnp.ones_like,
    ),
    "v": OutputKind(
        target=v_from,
        read=lambda v, x_t, level: Prediction(x_0_from_v(level, x_t, v), eps_from_v(level, x_t, v)),
        error_ratio=lambda snr: snr + 1,
    ),
}


PREDICTION_ALIASES = {
    "epsilon": "eps",
    "pred_noise": "eps",
    "sample": "x_0",
    "pred_x0": "x_0",
    "v_prediction": "v",
    "pred_v": "v",
}  # diffusers, lucidrains

if TYPE_CHECKING:
    PredictionType = str
else:
    PredictionType = Literal[tuple(PREDICTION_TYPES)]


def check_prediction_type(name: str) -> str:
    """The key of PREDICTION_TYPES for `name` or its alias. Raises UserError for other names."""
    return check_choice("prediction_type", name, PREDICTION_TYPES, PREDICTION_ALIASES)


def to_prediction(output: Images, x_t: Images, level: Level, prediction_type: str) -> Prediction:
    """Read the network's output as a prediction of eps, x_0 or v, and give x_0 and eps.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> level = jd.level_at(jd.named_schedule("linear", 1000), jax.numpy.array([500, 500]))
        >>> v, x_t = jax.numpy.zeros((2, 8, 8, 1)), jax.numpy.ones((2, 8, 8, 1))
        >>> prediction = jd.to_prediction(v, x_t, level, "v")
        >>> prediction.x_0.shape, prediction.eps.shape
        ((2, 8, 8, 1), (2, 8, 8, 1))
    """
    return PREDICTION_TYPES[check_prediction_type(prediction_type)].read(output, x_t, level)


def prediction_target(level: Level, x_0: Images, noise: Images, prediction_type: str) -> Images:
    """What the network's output is compared with: the drawn noise, the clean image, or v.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> level = jd.level_at(jd.named_schedule("linear", 1000), jax.numpy.array([500, 500]))
        >>> x_0, noise = jax.numpy.zeros((2, 8, 8, 1)), jax.numpy.ones((2, 8, 8, 1))
        >>> bool((jd.prediction_target(level, x_0, noise, "eps") == noise).all())
        True
    """
    return PREDICTION_TYPES[check_prediction_type(prediction_type)].target(level, x_0, noise)


def split_output(
    output: Float[Array, "b h w o"], learned_variance: bool
) -> tuple[Images, Images | None]:
    """The network's prediction and, if it learns the variance, the second half of its channels."""
    if not learned_variance:
        return output, None
    prediction, raw_variance = jnp.split(output, 2, axis=-1)
    return prediction, raw_variance
