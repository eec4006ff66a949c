"""Networks as two pure functions, and the checks of what they are given."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Num

from jax_ddpm.errors import UserError, nearest
from jax_ddpm.models.architecture import Architecture, ImageShape
from jax_ddpm.models.initializers import describe_parameters, draw_parameters, is_described
from jax_ddpm.models.layers import DropoutKeys, Dtype, Features, statistics_dtype


class NetworkFns(NamedTuple):
    """A network as two pure functions.

    `init(key) -> params` and `apply_fn(params, x_t[b,h,w,c], t[b], *, label=None, x_self_cond=None,
    train=False, dropout_keys=None) -> [b,h,w,o]`. Dropout is on where `train` is set, and then
    needs `dropout_keys`, one key per image. `apply_fn` raises UserError for arguments that the
    network does not take, and for images of another shape or type.
    """

    init: Callable[[Key[Array, ""]], Any]
    apply_fn: Callable[..., Any]


def make_network(
    network: Architecture | nn.Module,
    image_shape: ImageShape,
    *,
    out_channels: int | None = None,
    dtype: Dtype = None,
) -> NetworkFns:
    """The pure functions of a network for images of `image_shape` (h, w, c).

    `network` is a configuration, such as `UNetConfig()`, or a Linen module. A configuration's
    network has as many output channels as the images unless `out_channels` is given, and computes
    in its `compute_dtype` unless `dtype` is given.

    Raises UserError for a configuration that cannot work, or not with such images.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> config = jd.UNetConfig(channels=8, channel_mult=(1, 2), num_groups=4)
        >>> network = jd.make_network(config, (8, 8, 1))
        >>> params = network.init(jax.random.key(0))
        >>> x_t, t = jax.numpy.zeros((2, 8, 8, 1)), jax.numpy.array([3, 500])
        >>> network.apply_fn(params, x_t, t).shape
        (2, 8, 8, 1)
    """
    module = make_module(network, image_shape, out_channels, dtype)

    def init_module(key: Key[Array, ""]) -> Any:
        x_t, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
        return module.init(key, x_t, t)["params"]

    @cache
    def describe() -> Any:
        return describe_parameters(init_module)

    def init(key: Key[Array, ""]) -> Any:
        leaves = jax.tree.leaves(describe(), is_leaf=is_described)
        ours = all(map(is_described, leaves))  # a user's own module has other initialisers
        return draw_parameters(describe(), key) if ours else init_module(key)

    def apply_fn(params: Any, x_t: Any, t: Any, **network_args: Any) -> Any:
        check_images(x_t, t, image_shape[-1])
        given = {name: value for name, value in network_args.items() if value is not None}
        check_names(module, given)
        return module.apply({"params": params}, x_t, t, **given)

    return NetworkFns(init, apply_fn)


def make_module(
    network: Architecture | nn.Module,
    image_shape: ImageShape,
    out_channels: int | None = None,
    dtype: Dtype = None,
) -> nn.Module:
    """The Linen module of a network; see `make_network`."""
    if len(image_shape) != 3:
        raise UserError(f"image_shape is {image_shape}, but it must be (height, width, channels)")
    if not isinstance(network, Architecture):
        return network
    height, width, channels = image_shape
    network.check()
    network.check_sides(height, width)
    require_channels(image_shape, network.image_channels or channels)
    return network.module(out_channels or channels, jnp.dtype(dtype or network.compute_dtype))


def parameter_shapes(config: Architecture) -> Any:
    """The tree of shapes of the parameters, without computing any."""
    network = make_network(config, config.example_shape)
    return jax.eval_shape(network.init, jax.random.key(0))


class NetworkModule(nn.Module):
    """The Linen module of an architecture: it checks its arguments and calls `forward`.

    An architecture defines `forward(x_t, t, label, dropout_keys) -> [b, h, w, out_channels]`. The
    images come in `dtype`, after an earlier estimate of x_0 where the network is self-conditioned.
    The keys are None outside of training.
    """

    config: Any
    out_channels: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_t: Features,
        t: Num[Array, " b"],
        *,
        label: Num[Array, "b ..."] | None = None,
        x_self_cond: Features | None = None,
        train: bool = False,
        dropout_keys: DropoutKeys = None,
    ) -> Features:
        """The raw output [b, h, w, out_channels], float32 or better, for images x_t at t."""
        config: Architecture = self.config
        config.check_sides(*x_t.shape[1:3])
        if not self.is_initializing():
            check_label(config, label)
        check_estimate(config, x_t, x_self_cond)
        if config.self_conditioned:
            estimate = jnp.zeros_like(x_t) if x_self_cond is None else x_self_cond
            x_t = jnp.concatenate([estimate, x_t], axis=-1)
        if train and dropout_keys is None and config.dropout_rate > 0:
            raise UserError(
                f"train=True needs dropout_keys, one key per image, because this network has "
                f"dropout {config.dropout_rate:g}"
            )
        out = self.forward(x_t.astype(self.dtype), t, label, dropout_keys if train else None)
        return out.astype(statistics_dtype(self.dtype))

    def forward(
        self, x_t: Features, t: Num[Array, " b"], label: Any, dropout_keys: DropoutKeys
    ) -> Features:
        """The network itself; see the class."""
        raise NotImplementedError


def check_images(x_t: Any, t: Any, channels: int) -> None:
    """Raise UserError unless x_t are real images [b, h, w, channels] and t are their timesteps."""
    shape = jnp.shape(x_t)
    if len(shape) != 4:
        raise UserError(f"images are [batch, height, width, channels], but x_t has shape {shape}")
    require_channels(shape, channels)
    dtype = jnp.result_type(x_t)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(
            f"x_t is {dtype}, but a network takes floating-point images in [-1, 1]: convert "
            "uint8 pixels with jax_ddpm.from_uint8(x)"
        )
    if jnp.shape(t) != shape[:1]:
        raise UserError(
            f"t has shape {jnp.shape(t)}, but {shape[0]} images need shape ({shape[0]},)"
        )


def require_channels(shape: tuple[int, ...], channels: int) -> None:
    """Raise UserError unless the last axis of `shape` has this number of channels."""
    if shape[-1] != channels:
        nchw = shape[-3] == channels
        hint = ": channels come last, so transpose NCHW arrays to NHWC" if nchw else ""
        raise UserError(
            f"images of shape {shape} have {shape[-1]} channels, but this network takes "
            f"{channels}{hint}"
        )


def check_label(config: Architecture, label: Any) -> None:
    """Raise UserError for a missing label, and for one that the network does not take."""
    if label is None and config.takes_label:
        count = "" if config.num_labels is None else f"{config.num_labels} "
        raise UserError(
            f"this network has {count}classes, but no label is given: pass label=, one per image"
        )
    if label is not None and not config.takes_label:
        raise UserError("this network has no classes, but a label is given")


def check_estimate(config: Architecture, x_t: Any, x_self_cond: Any) -> None:
    """Raise UserError for an estimate that the network does not take, or of another shape."""
    if x_self_cond is None:
        return
    if not config.self_conditioned:
        raise UserError("this network is not self-conditioned, but x_self_cond is given")
    if x_self_cond.shape != x_t.shape:
        raise UserError(
            f"x_self_cond has shape {x_self_cond.shape}, but x_t has {x_t.shape}: they must agree"
        )


def check_names(module: nn.Module, given: dict[str, Any]) -> None:
    """Raise UserError for the first keyword that the module's `__call__` does not take."""
    known = find_arguments(type(module).__call__)
    for name in given:
        if known is not None and name not in known:
            near = nearest(name, known)
            hint = f": did you mean {near!r}?" if near else ""
            raise UserError(f"this network takes no argument {name!r}{hint}")


def find_arguments(function: Callable[..., Any]) -> list[str] | None:
    """The names of a function's arguments; None if it takes any keyword, or has no signature."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # some callables written in C have no signature
        return None
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters]
