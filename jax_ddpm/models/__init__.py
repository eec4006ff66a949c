"""Networks behind one contract: `init(key)` -> params, `apply_fn(params, x_t, t)` -> output."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Key

from jax_ddpm.models.unet import UNet

__all__ = ["Network", "UNet", "make_network"]


class Network(NamedTuple):
    """`apply_fn(params, x_t[b,h,w,c], t[b], *, train=False, dropout_keys=None)` -> [b,h,w,o]."""

    init: Callable[[Key[Array, ""]], Any]
    apply_fn: Callable[..., Any]


def make_network(module: nn.Module, image_shape: tuple[int, int, int]) -> Network:
    """The pure functions of a Linen module for images of `image_shape` (h, w, c)."""

    def init(key: Key[Array, ""]) -> Any:
        x_t, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
        return module.init(key, x_t, t)["params"]

    def apply_fn(params: Any, *args: Any, **kwargs: Any) -> Any:
        return module.apply({"params": params}, *args, **kwargs)

    return Network(init, apply_fn)
