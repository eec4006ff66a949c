"""`from_torch` and `to_torch`: convert whole networks from and to another implementation."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_ddpm.errors import UserError, check_choice, nearest
from jax_ddpm.files.untrusted import explain
from jax_ddpm.interop.annotated import ANNOTATED, ANNOTATED_LAYERNORM, ANNOTATED_WS, EPITA
from jax_ddpm.interop.diffusers import DIFFUSERS
from jax_ddpm.interop.facts import Fact, Missing, Question, merge
from jax_ddpm.interop.lucidrains import LUCIDRAINS
from jax_ddpm.interop.monai import MONAI
from jax_ddpm.interop.openai import GUIDED_DIFFUSION, IMPROVED_DIFFUSION
from jax_ddpm.interop.peer import Peer
from jax_ddpm.interop.pulfer import PULFER
from jax_ddpm.interop.recognise import choose_peer
from jax_ddpm.interop.source import Source, choose_inside, read_object, read_source
from jax_ddpm.interop.state_dict import from_state_dict, to_state_dict
from jax_ddpm.interop.unet import HO, PESSER, TORCH_REF
from jax_ddpm.interop.unwrap import UNFIT, find_network
from jax_ddpm.models import Architecture, make_network, parameter_shapes

PEERS: dict[str, Peer] = {
    "torch_ref": TORCH_REF,
    "ho": HO,
    "pesser": PESSER,
    "diffusers": DIFFUSERS,
    "monai": MONAI,
    "guided_diffusion": GUIDED_DIFFUSION,
    "improved_diffusion": IMPROVED_DIFFUSION,
    "lucidrains": LUCIDRAINS,
    "pulfer": PULFER,
    "annotated": ANNOTATED,
    "annotated_layernorm": ANNOTATED_LAYERNORM,
    "annotated_ws": ANNOTATED_WS,
    "epita": EPITA,
}
if TYPE_CHECKING:
    PeerName = str
else:
    PeerName = Literal[tuple(PEERS)]


@dataclass(frozen=True)
class Network:
    """A network with its weights.

    `apply(params, x_t[b,h,w,c], t[b], *, label=None, x_self_cond=None, train=False,
    dropout_keys=None) -> [b,h,w,o]` computes in the wider dtype of the images and the parameters,
    as JAX promotes them. It can be sampled from and trained like any `apply_fn`.
    """

    source: PeerName
    config: Architecture
    params: Any
    apply: Callable[..., Array]
    origin: str = ""
    """Which weights of the file these are: "the average at ema.ema_model", for example."""
    facts: tuple[Fact, ...] = ()
    """What the source says about the process, the sampler and the images: each setting of a run,
    its value and where that comes from, "assumed" included. A Missing value says why a run cannot
    have it."""


def from_torch(
    state_dict: Mapping[str, Any] | Sequence[Any] | str | os.PathLike[str],
    source: str | None = None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    weights: str | None = None,
    prefix: str | None = None,
) -> Network:
    """Read a network from what `source` wrote: a state dict (names -> arrays), or a path.

    A path is what `jax-ddpm convert` takes: a weight file, a folder with one, the index of a
    sharded one, or the folder of a pipeline; the JSON files beside it are read. A state dict may
    also be a trainer's file: nested mappings and lists, in which any container and any common
    prefix of names may hold the network. `source` may be left out if the names tell it.

    `config` holds the peer's own constructor arguments, or the flags of OpenAI's scripts; it is a
    mapping or the path of a JSON file. Missing arguments are inferred from the shapes or get the
    peer's defaults. Without `config`, the shapes must determine everything that matters. What it
    says about the training or the diffusion process goes into `facts` of the network.

    `weights` is "average" or "raw"; None takes the average if there is one. `prefix` chooses among
    several sets of weights: it is a part of the path of containers and prefix, such as "ema.model".

    Raises UserError if no weights fit or several do; unless every tensor of the network is used
    exactly once with the right shape, naming the first offender; for impossible arguments, and
    for a `source` whose names are not those of the weights.

    Examples:
        >>> import jax_ddpm as jd, numpy as np
        >>> from torch_ref.pulfer import PulferUNet  # or any of the networks in docs/weights.md
        >>> weights = {name: a.numpy() for name, a in PulferUNet().state_dict().items()}
        >>> network = jd.from_torch(weights)
        >>> network.source
        'pulfer'
        >>> x_t, t = np.zeros((2, 28, 28, 1), np.float32), np.array([3, 500])
        >>> network.apply(network.params, x_t, t).shape
        (2, 28, 28, 1)
    """
    if source is not None:
        source = check_choice("source", source, PEERS)
    found = make_source(state_dict, config, weights)
    source = choose_peer(found, source)
    network = read_network(found, source, weights=choose_inside(found.path, weights), prefix=prefix)
    return replace(network, facts=describe_run(found, source))


def describe_run(given: Source, source: str) -> tuple[Fact, ...]:
    """Collect what `given` says about a run; a Missing value gives the reason against any run."""
    try:
        return tuple(merge(PEERS[source].describe(Question(given, {}))).values())
    except UserError as error:  # the network can be used all the same
        return (Fact("run", Missing(str(error)), source),)


def make_source(given: Any, config: Any, weights: str | None) -> Source:
    """Read the file or folder `given`, or wrap a state dict, and add the arguments `config`."""
    file = Path(config) if isinstance(config, str | os.PathLike) else None
    if isinstance(given, str | os.PathLike):
        found = read_source(Path(given), file, weights or "average")
    else:
        found = Source(None, given)
        config = config if file is None else read_object(file, "the JSON file of its arguments")
    if not isinstance(config, Mapping):
        return found
    documents = {**found.documents, "config": dict(config)}
    return replace(found, documents=documents, arguments_name="config")


def read_network(
    given: Source, source: str, *, weights: str | None = None, prefix: str | None = None
) -> Network:
    """Read the network of `given`, which the implementation `source` wrote; see `from_torch`."""
    peer = PEERS[source]
    found = find_network(given.tensors, peer, weights, prefix)
    tensors = found.tensors
    try:
        made = complete_config(tensors, peer, source, given.arguments)
        made.check()
        like = parameter_shapes(made)
        params = from_state_dict(tensors, peer.of(made), like)
    except UNFIT as error:
        raise UserError(
            f"these are not the {source} weights of this network: {explain(error)}"
        ) from error
    require_finite(params)
    params = jax.tree.map(to_array, params)
    return Network(source, made, params, make_apply(made), found.describe())


def require_finite(params: Any) -> None:
    """Raise UserError for a parameter with NaN or infinity: the training has diverged."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise UserError(
                f"the weights that become {name} are not all finite, so the network draws nothing: "
                "take a file from before its training diverged"
            )


def to_torch(network: Network) -> dict[str, np.ndarray]:
    """Convert the parameters to the names and layouts of `network.source`, bit for bit.

    Examples:
        >>> import jax_ddpm as jd
        >>> from torch_ref.pulfer import PulferUNet
        >>> weights = {name: a.numpy() for name, a in PulferUNet().state_dict().items()}
        >>> back = jd.to_torch(jd.from_torch(weights))
        >>> all((back[name] == weights[name]).all() for name in back)
        True
    """
    return to_state_dict(network.params, PEERS[network.source].of(network.config))


def complete_config(
    tensors: Mapping[str, np.ndarray], peer: Peer, source: str, given: Mapping[str, Any] | None
) -> Architecture:
    """Build the configuration: given arguments first, then inferred ones, then the defaults."""
    try:
        inferred = peer.infer({name: tensor.shape for name, tensor in tensors.items()})
    except UserError:  # its message says more
        raise
    except UNFIT as error:
        names = ", ".join(list(tensors)[:3])
        raise UserError(f"it has no network with weights called {names}, ...") from error
    if given is None and (unknown := [n for n in peer.unknowable if n not in inferred]):
        raise UserError(f"shapes do not reveal {unknown[0]}: give the configuration as well")
    arguments = peer.read_flags({name: _freeze(value) for name, value in (given or {}).items()})
    for name in arguments.keys() - set(peer.arguments):
        if close := nearest(name, peer.arguments, cutoff=0.8):
            raise UserError(f"{source} has no argument {name!r}, did you mean {close!r}?")
        del arguments[name]
    return peer.make_config(**{**inferred, **arguments})


def _freeze(value: Any) -> Any:
    """Turn lists, as JSON has them, into tuples, also inside each other."""
    return tuple(_freeze(item) for item in value) if isinstance(value, list | tuple) else value


def to_array(array: np.ndarray) -> Array | np.ndarray:
    """Copy to a JAX array, or to NumPy if JAX would narrow the dtype (float64 without x64)."""
    array = np.array(array)  # a copy, because JAX may share the memory
    narrows = jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype
    return array if narrows else jnp.asarray(array)


def make_apply(config: Architecture) -> Callable[..., Array]:
    """Make the `apply_fn` of the network that `config` describes; see Network."""

    def apply(params: Any, x_t: Any, t: Any, **network_args: Any) -> Array:
        x_t = jnp.asarray(x_t)
        network = make_network(
            config,
            config.example_shape,
            out_channels=config.image_channels,
            dtype=jnp.result_type(x_t, *jax.tree.leaves(params)),
        )
        return network.apply_fn(params, x_t, jnp.asarray(t), **network_args)

    return apply
