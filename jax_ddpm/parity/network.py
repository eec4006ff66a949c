"""Compare one network in both frameworks: the output of every block, and every gradient."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jax_ddpm.interop import PEERS, Network, PeerName, from_state_dict
from jax_ddpm.interop.state_dict import collect_shapes, count_stages, translate_name
from jax_ddpm.models import parameter_shapes
from jax_ddpm.parity.blocks import Block, match_blocks
from jax_ddpm.parity.measure import find_peak
from jax_ddpm.parity.quantities import Pair
from jax_ddpm.parity.twins import draws, to_jax, to_torch

TIMESTEPS = (0, 417, 999)


class Reference(NamedTuple):
    """The same network in PyTorch, in float32, with the same weights."""

    against: str
    """Its package or module, for the report."""
    source: PeerName
    """The implementation whose parameter names it uses."""
    module: torch.nn.Module
    in_float64: Callable[[torch.nn.Module], AbstractContextManager[Any]] = nullcontext
    """A context in which it computes in float64."""


class Inputs(NamedTuple):
    """The arguments for a network."""

    x_t: np.ndarray
    t: np.ndarray
    optional: dict[str, Any]
    """label and x_self_cond, if the network takes them."""


class Outcome(NamedTuple):
    """The outputs and gradients of one network, as NHWC arrays."""

    out: Any
    blocks: dict[str, Any]
    """Outputs of its modules by name, in the order in which they ran."""
    grad_x: Any
    grads: Any
    """The gradients of all parameters, as a tree like our parameters."""


def pair_network(
    network: Network, reference: Reference, tolerance: str, dtype: str, seed: int
) -> Iterator[Pair]:
    """Run both networks on the same random images; pair outputs block by block, and all gradients.

    `tolerance` names an entry of TOLERANCES; the entry f"{tolerance}: gradients" is for gradients.
    """
    inputs = make_inputs(network.config, dtype, seed)
    theirs, names = run_theirs(network, reference, inputs, dtype)
    ours = run_ours(network, inputs, dtype)
    found = match_blocks(ours.blocks, theirs.blocks, names)
    for match in found.values():
        group = "blocks, from the first to the last"
        yield Pair(group, match.label, tolerance, match.ours, match.theirs)
    group = "the whole network"
    yield Pair(group, "output", tolerance, ours.out, theirs.out)
    tolerance = f"{tolerance}: gradients"
    yield Pair(group, "gradient of the input", tolerance, ours.grad_x, theirs.grad_x)
    our_norm, their_norm = _measure_norm(ours.grads), _measure_norm(theirs.grads)
    yield Pair(group, "norm of the gradient", tolerance, our_norm, their_norm)
    yield from _pair_gradients(ours.grads, theirs.grads, list(found), tolerance)


def _measure_norm(tree: Any) -> np.ndarray:
    return np.asarray(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))))


def make_inputs(config: Any, dtype: str, seed: int) -> Inputs:
    """Draw normal images of the network's size, at several t, and conditions if it takes any."""
    height, width, channels = config.example_shape
    shape = (len(TIMESTEPS), height, width, channels)
    t = np.array(TIMESTEPS) * (getattr(config, "n_steps", 1000) - 1) // 999
    optional: dict[str, Any] = {}
    if getattr(config, "self_condition", False):
        optional["x_self_cond"] = draws(shape, dtype, seed + 1)
    classes = getattr(config, "num_classes", None) or getattr(config, "num_class_embeds", None)
    if classes:
        optional["label"] = np.random.default_rng(seed).integers(0, classes, len(t))
    return Inputs(draws(shape, dtype, seed), t, optional)


def run_ours(network: Network, inputs: Inputs, dtype: str) -> Outcome:
    """Run our network; collect intermediates, and the gradients of the mean squared output."""
    module = network.config.module(inputs.x_t.shape[-1], jnp.dtype(dtype))
    given = jax.tree.map(jnp.asarray, (inputs.t, inputs.optional))
    wanted: dict[str, Any] = {"capture_intermediates": True, "mutable": ["intermediates"]}

    def loss_fn(params: Any, x_t: jax.Array) -> Any:
        variables, (t, optional) = {"params": params}, given
        out, state = module.apply(variables, x_t, t, **optional, **wanted)
        return (out**2).mean(), (out, state["intermediates"])

    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), network.params)
    gradient = jax.jit(jax.grad(loss_fn, (0, 1), has_aux=True))
    (grads, grad_x), (out, state) = gradient(params, inputs.x_t)
    blocks = dict(_list_outputs(state))
    blocks.pop("", None)
    return Outcome(out, blocks, grad_x, grads)


def _list_outputs(state: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, jax.Array]]:
    """Yield (dotted path, output) for each module that ran once and returned one array."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from _list_outputs(value, f"{path}.{name}" if path else name)
        elif len(value) == 1 and isinstance(value[0], jax.Array):
            yield path, value[0]


def run_theirs(
    network: Network, reference: Reference, inputs: Inputs, dtype: str
) -> tuple[Outcome, dict[str, str]]:
    """Run the reference as `run_ours` does. Also returns a map from its parameter names to ours."""
    # torch.nn.Module's own method, because diffusers' override prints needless warnings
    module = torch.nn.Module.to(copy.deepcopy(reference.module), getattr(torch, dtype))
    context = reference.in_float64(module) if dtype == "float64" else nullcontext()
    x_t = to_torch(inputs.x_t).requires_grad_()
    with use_default_dtype(dtype), context, record_calls(module) as calls:
        out = call_network(module, x_t, inputs)
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        grad_x, *grads = torch.autograd.grad(
            (out**2).mean(), [x_t, *trained.values()], allow_unused=True, materialize_grads=True
        )
    blocks = {
        name: made[0]
        for name, made in calls.items()
        if len(made) == 1 and isinstance(made[0].out, torch.Tensor)
    }
    named = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    named |= dict(zip(trained, grads, strict=True))
    tree, names = _convert_gradients(network, reference, named)
    return Outcome(to_jax(out), blocks, to_jax(grad_x), tree), names


@contextmanager
def record_calls(module: torch.nn.Module) -> Iterator[dict[str, list[Block]]]:
    """Record the calls of every submodule, by its name."""
    calls: dict[str, list[Block]] = {}

    def make_hook(name: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, out: Any) -> None:
            calls.setdefault(name, []).append(Block(out, args[0] if args else None))

        return hook

    named = [(name, child) for name, child in module.named_modules() if name]
    hooks = [child.register_forward_hook(make_hook(name)) for name, child in named]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def use_default_dtype(dtype: str) -> Iterator[None]:
    """Make `dtype` the default dtype of new PyTorch tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def call_network(module: torch.nn.Module, x_t: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Call a network of any implementation, each of which names the conditions differently."""
    theirs = {"label": ("label", "y", "class_labels"), "x_self_cond": ("x_self_cond",)}
    known = inspect.signature(module.forward).parameters
    optional = {
        next(name for name in theirs[ours] if name in known): to_torch(value)
        for ours, value in inputs.optional.items()
    }
    out = module(x_t, torch.from_numpy(inputs.t), **optional)
    return out if isinstance(out, torch.Tensor) else out.sample


def _convert_gradients(
    network: Network, reference: Reference, grads: Mapping[str, torch.Tensor]
) -> tuple[Any, dict[str, str]]:
    """Convert the gradients to a tree like ours. Also returns our name of each parameter."""
    like = parameter_shapes(network.config)
    peer = PEERS[reference.source].of(network.config)
    places, levels = collect_shapes(like), count_stages(like)
    arrays = {name: grad.numpy() for name, grad in grads.items()}
    names = {name: translate_name(name, peer, places, levels) for name, array in arrays.items()}
    return from_state_dict(arrays, peer, like), names


def _pair_gradients(ours: Any, theirs: Any, blocks: list[str], tolerance: str) -> Iterator[Pair]:
    """Pair the gradients of each block's parameters, relative to the largest of all gradients."""
    peak = find_peak(theirs)
    named = [_name_leaves(tree) for tree in (ours, theirs)]
    owner = {
        name: max((b for b in blocks if name.startswith(f"{b}.")), key=len, default="the rest")
        for name in named[0]
    }
    for block in [*blocks, "the rest"]:
        mine, reference = ({n: g for n, g in tree.items() if owner[n] == block} for tree in named)
        if mine:
            yield Pair("gradients of all parameters", block, tolerance, mine, reference, "", peak)


def _name_leaves(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of `tree` by dotted path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keystr = jax.tree_util.keystr
    return {keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}
