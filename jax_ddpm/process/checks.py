"""Mistakes that can be caught early: dtypes and shapes when a function is traced, values if known.

Values are known outside `jax.jit`; inside it they are not checked.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ddpm.errors import UserError, nearest

SMALLEST_IMAGE = 8  # a side below which [b, 1 or 3, h, w] may well be a tiny image with c = w


def known_values(array: Any) -> np.ndarray | None:
    """The numbers in `array`, or None while they are traced or lie in other processes."""
    if isinstance(array, jax.core.Tracer) or not getattr(array, "is_fully_addressable", True):
        return None
    return np.asarray(array)


def check_range(name: str, value: Any, lowest: float, highest: float = np.inf) -> None:
    """Raise UserError unless `value` is, as far as known, in `lowest`..`highest`."""
    known = known_values(value)
    if known is not None and not np.all((lowest <= known) & (known <= highest)):
        expected = f"between {lowest} and {highest}" if highest < np.inf else f"at least {lowest}"
        raise UserError(f"{name} is {value}, but it must be {expected}")


def check_images(name: str, images: Any) -> None:
    """Raise UserError unless `images` are floats with the channels last."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"{name} has dtype {images.dtype}, but images are floats in [-1, 1]: "
            "convert pixels with x / 127.5 - 1"
        )
    shape = tuple(images.shape)
    channels_first = len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3)
    if channels_first and min(shape[2:]) >= SMALLEST_IMAGE:
        raise UserError(
            f"{name} has shape {shape}, which looks like [batch, channels, height, width], "
            "but images are [batch, height, width, channels]: use jnp.moveaxis(x, 1, -1)"
        )


def check_timesteps(t: Any, num_timesteps: int, *, lowest: int = 0) -> None:
    """Raise UserError unless `t` are integers and, as far as known, in `lowest`..T-1."""
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise UserError(
            f"t has dtype {t.dtype}, but timesteps are integers: "
            "level_of_t gives the levels between them"
        )
    values = known_values(t)
    if values is None or values.size == 0:
        return
    worst = values.min() if values.min() < lowest else values.max()
    if not lowest <= worst < num_timesteps:
        raise UserError(f"t is {worst}, but it must be between {lowest} and {num_timesteps - 1}")


def check_output(output: Any, x_t: Any, learned_variance: bool) -> None:
    """Raise UserError unless a network's `output` has the shape that `x_t` calls for."""
    *sides, channels = x_t.shape
    expected = (*sides, 2 * channels if learned_variance else channels)
    if not hasattr(output, "shape"):
        raise UserError(
            f"the network returns a {type(output).__name__}, but it must return one array of shape "
            f"{expected}"
        )
    if tuple(output.shape) == expected:
        return
    hint = ""
    if not learned_variance and tuple(output.shape) == (*sides, 2 * channels):
        hint = ": if the second half of the channels is the variance, say that it is learned"
    kind = " with a learned variance" if learned_variance else ""
    raise UserError(
        f"the network's output has shape {tuple(output.shape)}, but for x_t of shape "
        f"{tuple(x_t.shape)}{kind} it must be {expected}{hint}"
    )


def check_network_args(network_args: Mapping[str, Any], own: Collection[str], owner: str) -> None:
    """Raise UserError if a name among `network_args` looks like one of `own`, misspelt.

    Arguments that a function does not know go to the network, and a network that takes `**kwargs`
    would silently swallow a misspelling. `own` are the parameters of the function `owner`.
    """
    for given in network_args:
        near = nearest(given, own, cutoff=0.85)
        if near == given:
            raise UserError(f"{given} is an argument of {owner}, not of the network")
        if near:
            raise UserError(
                f"{given} would go to the network, but it looks like {near}, an argument of {owner}"
            )
