"""`from_torch` and `to_torch`: whole networks, from and to the weights of their implementation."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import explain
from jax_ddpm.interop.annotated import ANNOTATED, ANNOTATED_LAYERNORM, ANNOTATED_WS, EPITA
from jax_ddpm.interop.diffusers import DIFFUSERS
from jax_ddpm.interop.lucidrains import LUCIDRAINS
from jax_ddpm.interop.openai import GUIDED_DIFFUSION, IMPROVED_DIFFUSION
from jax_ddpm.interop.peer import Peer
from jax_ddpm.interop.pulfer import PULFER
from jax_ddpm.interop.state_dict import from_state_dict, to_state_dict
from jax_ddpm.interop.unet import HO, TORCH_REF
from jax_ddpm.interop.unwrap import unwrap
from jax_ddpm.models import Architecture, make_network, parameter_shapes

Source = Literal[
    "torch_ref",
    "ho",
    "diffusers",
    "guided_diffusion",
    "improved_diffusion",
    "pulfer",
    "lucidrains",
    "annotated",
    "annotated_layernorm",
    "annotated_ws",
    "epita",
]

PEERS: dict[Source, Peer] = {
    "torch_ref": TORCH_REF,
    "ho": HO,
    "diffusers": DIFFUSERS,
    "guided_diffusion": GUIDED_DIFFUSION,
    "improved_diffusion": IMPROVED_DIFFUSION,
    "lucidrains": LUCIDRAINS,
    "pulfer": PULFER,
    "annotated": ANNOTATED,
    "annotated_layernorm": ANNOTATED_LAYERNORM,
    "annotated_ws": ANNOTATED_WS,
    "epita": EPITA,
}
# What shapes and arguments that make no network run into, wherever that is first seen.
UNFIT = (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError)


@dataclass(frozen=True)
class Network:
    """A network with its weights.

    `apply(params, x_t[b,h,w,c], t[b], *, label=None, x_self_cond=None) -> [b,h,w,o]` computes in
    the dtype of its arguments (the wider one, as JAX promotes), without dropout.
    """

    source: Source
    config: Architecture
    params: Any
    apply: Callable[..., Array]


def from_torch(
    state_dict: Mapping[str, Any], source: Source, config: Mapping[str, Any] | None = None
) -> Network:
    """The network whose weights `state_dict` holds (names -> arrays), written by `source`.

    `config` holds the peer's own constructor arguments under its own names; arguments of its
    training or diffusion process are passed over. What it leaves out is read off the shapes, else
    it is the peer's default; without any `config` there must be no argument that shapes leave open.
    Prefixes (model., ema_model., module., network.) and trainer files are understood: of a moving
    average and the parameters themselves the average is taken.

    Raises UserError, naming the first offender, unless every tensor is used exactly once, with its
    shape, and for arguments that cannot be.
    """
    if source not in PEERS:
        raise UserError(f"there is no source {source!r}, choose one of {', '.join(PEERS)}")
    peer = PEERS[source]
    tensors = unwrap(state_dict, peer.buffers)
    try:
        made = complete_config(tensors, peer, source, config)
        made.check()
        like = parameter_shapes(made)
        params = from_state_dict(tensors, peer, like)
    except UNFIT as error:
        raise UserError(
            f"these are not the {source} weights of this network: {explain(error)}"
        ) from error
    return Network(source, made, jax.tree.map(as_array, params), make_apply(made))


def to_torch(network: Network) -> dict[str, np.ndarray]:
    """The parameters under the names and in the layouts of `network.source`, bit for bit."""
    return to_state_dict(network.params, PEERS[network.source])


def complete_config(
    tensors: Mapping[str, np.ndarray], peer: Peer, source: str, given: Mapping[str, Any] | None
) -> Architecture:
    """The peer's configuration: what is given, else what the shapes say, else its defaults."""
    try:
        inferred = peer.infer({name: tensor.shape for name, tensor in tensors.items()})
    except UserError:  # it says more
        raise
    except UNFIT as error:
        names = ", ".join(list(tensors)[:3])
        raise UserError(f"it has no network with weights called {names}, ...") from error
    if given is None and (unknown := [n for n in peer.unknowable if n not in inferred]):
        raise UserError(f"no shape tells its {unknown[0]}: give the configuration as well")
    arguments = {name: _plain(value) for name, value in (given or {}).items()}
    for name in arguments.keys() - set(peer.arguments):
        if close := difflib.get_close_matches(name, peer.arguments, n=1, cutoff=0.8):
            raise UserError(f"{source} has no argument {name!r}, did you mean {close[0]!r}?")
        del arguments[name]
    return peer.make_config(**{**inferred, **arguments})


def _plain(value: Any) -> Any:
    """Lists, as JSON has them, as tuples."""
    return tuple(_plain(item) for item in value) if isinstance(value, list | tuple) else value


def as_array(array: np.ndarray) -> Array | np.ndarray:
    """A JAX array; a dtype that JAX would cut (float64 without x64) stays with NumPy."""
    array = np.array(array)  # a copy: JAX may keep what it is given
    return (
        jnp.asarray(array) if jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype else array
    )


def make_apply(config: Architecture) -> Callable[..., Array]:
    """The function of the network that `config` describes."""

    def apply(
        params: Any, x_t: Array, t: Array, *, label: Array | None = None,
        x_self_cond: Array | None = None,
    ) -> Array:  # fmt: skip
        """See Network."""
        x_t = jnp.asarray(x_t)
        dtype = jnp.result_type(x_t, *jax.tree.leaves(params))
        height, width, channels = x_t.shape[1:]
        network = make_network(config, (height, width, channels), dtype=dtype)
        return network.apply_fn(params, x_t, jnp.asarray(t), label=label, x_self_cond=x_self_cond)

    return apply
