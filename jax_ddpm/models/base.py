"""What every architecture has: a frozen configuration of plain values that builds its module."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

ImageShape = tuple[int, int, int]
MAX_BLOCKS = 100  # of a level: each is built before anything is computed


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The configuration of a network; each architecture adds its own settings."""

    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of convolutions and matrix products; parameters, norms and loss stay float32."""

    def module(self, out_channels: int, dtype: Any) -> nn.Module:
        """The Linen module that computes in `dtype`; `out_channels` where the settings leave it."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise ValueError, in one sentence, for the first setting that cannot work."""

    @property
    def num_labels(self) -> int | None:
        """The number of classes that the network can be told; None: it takes no label."""
        return None

    @property
    def num_timesteps(self) -> int | None:
        """The number of timesteps that the network has a table for; None: any."""
        return None

    @property
    def self_conditioned(self) -> bool:
        """Whether the network takes an earlier guess of x_0."""
        return bool(getattr(self, "self_condition", False))

    @property
    def example_shape(self) -> ImageShape:
        """(height, width, channels) of an image that the network takes."""
        raise NotImplementedError


class NetworkFns(NamedTuple):
    """A network as two pure functions.

    `init(key) -> params` and `apply_fn(params, x_t[b,h,w,c], t[b], *, label=None, x_self_cond=None,
    train=False, dropout_keys=None) -> [b,h,w,o]`; label [b] and x_self_cond [b,h,w,c] only where
    the architecture has them, else giving one raises TypeError.
    """

    init: Callable[[Key[Array, ""]], Any]
    apply_fn: Callable[..., Any]


def make_network(
    network: Architecture | nn.Module,
    image_shape: ImageShape,
    *,
    out_channels: int | None = None,
    dtype: Any = None,
) -> NetworkFns:
    """The pure functions of a network for images of `image_shape` (h, w, c).

    `network` is a configuration, such as `UNetConfig()`, or a Linen module. A configuration's
    network has as many output channels as the images unless `out_channels` is given, and computes
    in its `compute_dtype` unless `dtype` is given.

    Raises ValueError for a configuration that cannot work.
    """
    if isinstance(network, Architecture):
        network.check()
        dtype = jnp.dtype(dtype or network.compute_dtype)
        module = network.module(out_channels or image_shape[-1], dtype)
    else:
        module = network

    def init(key: Key[Array, ""]) -> Any:
        x_t, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
        return module.init(key, x_t, t)["params"]

    def apply_fn(
        params: Any, x_t: Any, t: Any, *, label: Any = None, x_self_cond: Any = None, **kwargs: Any
    ) -> Any:
        optional = {"label": label, "x_self_cond": x_self_cond}
        kwargs |= {name: value for name, value in optional.items() if value is not None}
        return module.apply({"params": params}, x_t, t, **kwargs)

    return NetworkFns(init, apply_fn)


def parameter_shapes(config: Architecture) -> Any:
    """The tree of shapes of the parameters, without computing any."""
    network = make_network(config, config.example_shape)
    return jax.eval_shape(network.init, jax.random.key(0))


def require(ok: bool, name: str, value: object, expected: str) -> None:
    """Raise ValueError, naming the setting as the command line does, unless it is `ok`."""
    if not ok:
        raise ValueError(f"--model.{name} is {value}, but it must be {expected}")


def require_positive(config: Architecture, *names: str) -> None:
    """Raise ValueError unless each of these settings is None or at least 1."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= 1, name.replace("_", "-"), value, "at least 1, or None")
