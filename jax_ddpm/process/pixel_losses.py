"""The error of each pixel, and its mean over an image."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_ddpm.errors import check_choice
from jax_ddpm.process.shapes import mean_over_pixels
from jax_ddpm.process.types import Images, Losses

# Of d = output - target; huber has delta = 1.
PIXEL_LOSSES: dict[str, Callable[[Array], Array]] = {
    "l1": jnp.abs,
    "l2": lambda d: d**2,
    "huber": lambda d: jnp.where(jnp.abs(d) <= 1, 0.5 * d**2, jnp.abs(d) - 0.5),
}

if TYPE_CHECKING:
    LossType = str
else:
    LossType = Literal[tuple(PIXEL_LOSSES)]


def pixel_loss(
    loss_type: str, output: Float[Array, "*n"], target: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """|d|, d^2, or Huber with delta = 1 (d^2/2 up to 1, then |d| - 1/2), d = output - target."""
    return PIXEL_LOSSES[check_choice("loss_type", loss_type, PIXEL_LOSSES)](output - target)


def mean_loss(loss_type: str, output: Images, target: Images) -> Losses:
    """`pixel_loss` in the dtype of `target`, averaged over each image."""
    return mean_over_pixels(pixel_loss(loss_type, output.astype(target.dtype), target))
