"""Checks of Python users' arguments. Each error is one sentence that says what to do instead."""

import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jax_ddpm.errors import UserError, nearest
from jax_ddpm.models import NetworkFns
from jax_ddpm.process import checks

# Keywords that any network may take besides x_t and t.
NETWORK_ARGS = ("label", "x_self_cond", "train", "dropout_keys")
LARGEST = 1.01  # dequantised 8-bit pixels reach 1 + 1 / 255


def check_keywords(what: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise UserError for the first keyword that is not known, naming the nearest one."""
    for name in given:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near!r}?" if near else f"it takes {', '.join(known) or 'none'}"
            raise UserError(f"{what} takes no keyword {name!r}: {hint}")


def check_network(apply_fn: Any, params: Any) -> None:
    """Raise UserError unless these look like a network's function and its parameters."""
    if isinstance(apply_fn, NetworkFns):
        raise UserError("apply_fn is a network: give its function, network.apply_fn")
    if not callable(apply_fn):
        raise UserError(
            f"apply_fn is {type(apply_fn).__name__}, but it must be a function "
            "(params, x_t, t) -> output"
        )
    if params is None:
        raise UserError(
            "params is None, but it must hold the network's parameters, such as network.init(key) "
            "({} for a network without any)"
        )


def check_network_args(
    apply_fn: Callable[..., Any],
    given: Iterable[str],
    settings: Collection[str],
    own: Collection[str] = (),
) -> None:
    """Raise UserError for keywords that the network does not take or that are Diffusion settings.

    A network with `**kwargs` may be given only the keywords that it names and NETWORK_ARGS. `own`
    are the calling method's keywords, which the user may have misspelt.
    """
    named, any_other = find_keywords(apply_fn)
    known = dict.fromkeys([*named, *NETWORK_ARGS * any_other])
    for name in given:
        if name in settings:
            raise UserError(
                f"{name} is a setting of Diffusion: give it there, Diffusion(schedule, {name}=...)"
            )
        if name not in known:
            check_keywords("the network", [name], [*known, *own])


def find_keywords(apply_fn: Callable[..., Any]) -> tuple[list[str], bool]:
    """The keywords that `apply_fn` names after (params, x_t, t), and whether it has `**kwargs`."""
    try:
        parameters = list(inspect.signature(apply_fn).parameters.values())[3:]
    except (ValueError, TypeError):  # some callables written in C have no signature
        return [], True
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    any_other = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters)
    return [p.name for p in parameters if p.kind in kinds], any_other


def takes(apply_fn: Callable[..., Any], name: str) -> bool:
    """Whether `apply_fn` accepts the keyword `name`."""
    named, any_other = find_keywords(apply_fn)
    return any_other or name in named


def check_images(images: Any, *, clipped: bool) -> None:
    """Raise UserError unless these are float images [b, h, w, c], and in [-1, 1] if `clipped`.

    The range is checked only outside jit, where the values are known.
    """
    if not isinstance(images, np.ndarray | jax.Array):
        raise UserError(f"images is {type(images).__name__}, but it must be an array [b, h, w, c]")
    if images.dtype == np.uint8:
        raise UserError("images are uint8: convert them to [-1, 1] with jd.from_uint8(images)")
    checks.check_images("images", images)
    check_shape(images.shape, "images have shape")
    values = checks.known_values(images) if clipped else None
    if values is None or values.size == 0:
        return
    low, high = float(values.min()), float(values.max())
    if not -LARGEST <= low <= high <= LARGEST:
        raise UserError(
            f"images go from {low:g} to {high:g}, but samples are clipped to [-1, 1]: scale the "
            "images, or turn clipping off with Diffusion(schedule, clip_x_0=False)"
        )


def check_shape(shape: Any, what: str = "shape is") -> None:
    """Raise UserError, starting with `what`, unless `shape` is (b, h, w, c) with all sizes >= 1."""
    whole = isinstance(shape, tuple | list) and all(isinstance(n, int | np.integer) for n in shape)
    if not whole or len(shape) != 4 or min(shape) < 1:
        raise UserError(f"{what} {shape}, but it must be (images, height, width, channels)")
    checks.check_images("images", jax.ShapeDtypeStruct(shape, jnp.float32))


def derive_keys(key: Any, num_examples: int) -> Key[Array, " b"]:
    """One key per example: `key` itself if it holds that many, else `key` folded with the index.

    Raises UserError for anything but keys.
    """
    keys = convert_keys(key)
    if keys.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(keys, jnp.arange(num_examples))
    if keys.shape != (num_examples,):
        raise UserError(
            f"key has shape {keys.shape} for {num_examples} images: give one key, or one per image"
        )
    return keys


def convert_keys(key: Any) -> Key[Array, "*n"]:
    """Convert keys from jax.random.PRNGKey to typed keys; return typed keys unchanged."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if isinstance(key, np.ndarray | jax.Array) and key.dtype == np.uint32 and key.ndim in (1, 2):
        return jax.random.wrap_key_data(jnp.asarray(key))
    given = key if isinstance(key, int) else type(key).__name__
    raise UserError(f"key is {given}, but it must be a random key such as jax.random.key(0)")
