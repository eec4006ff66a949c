"""The loss of images that are not trained on, with the same noise and timesteps every time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from jax_ddpm.data.holdout import fixed_order
from jax_ddpm.files.images import from_uint8
from jax_ddpm.process.drawing import draw_training_noise
from jax_ddpm.process.losses import LossFn
from jax_ddpm.process.types import Losses

VALIDATION = 2**32 - 3  # folded into a key of its own, which no seed of a run changes

# pixels [b, h, w, c], labels [b] or None, timesteps [b], and the number of each image
Examples = tuple[
    UInt8[Array | np.ndarray, "b h w c"],
    Int[Array | np.ndarray, " b"] | None,
    Int[Array | np.ndarray, " b"],
    Int[Array | np.ndarray, " b"],
]


def spread_timesteps(num_images: int, num_timesteps: int) -> Int[np.ndarray, " n"]:
    """One timestep per image, floor(T (i + 1/2) / n): together they cover 0..T-1 evenly.

    Which image has which timestep is shuffled, because images may be in order of their classes.
    """
    middle = (fixed_order(num_images) + 0.5) / num_images
    return np.floor(num_timesteps * middle).astype(np.int32)


def make_validation_loss(
    loss_fn: LossFn,
    *,
    offset_noise: float = 0.0,
    self_condition: bool = False,
    class_conditional: bool = False,
) -> Callable[[Any, Examples, Any], Losses]:
    """Build (params, examples, _) -> the loss of each image [b], without dropout.

    The noise of an image depends only on its number. Labels are never dropped, and a
    self-conditioned network is given no guess.
    """

    def validation_loss(params: Any, examples: Examples, _: Any = ()) -> Losses:
        pixels, labels, t, numbers = examples
        key = jax.random.fold_in(jax.random.key(0), VALIDATION)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        x_0 = from_uint8(jnp.asarray(pixels))
        noise = draw_training_noise(keys, x_0.shape[1:], offset_noise=offset_noise)
        options: dict[str, Any] = {"label": jnp.asarray(labels)} if class_conditional else {}
        if self_condition:
            options["self_condition"] = jnp.zeros((), bool)
        return loss_fn(params, x_0, jnp.asarray(t), noise, **options)

    return validation_loss
