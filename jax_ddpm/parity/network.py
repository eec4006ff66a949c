"""One network in both frameworks: every block's output, and every gradient."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jax_ddpm.interop import PEERS, Network, Source, from_state_dict
from jax_ddpm.interop.state_dict import count_levels, our_name, shapes_of
from jax_ddpm.models import parameter_shapes
from jax_ddpm.parity.blocks import Block, matching_blocks
from jax_ddpm.parity.measure import peak_of
from jax_ddpm.parity.quantities import Pair
from jax_ddpm.parity.twins import draws, to_jax, to_torch

TIMESTEPS = (0, 417, 999)


class Reference(NamedTuple):
    """The same network in PyTorch, in float32, with the same weights."""

    against: str
    source: Source
    """Whose names its parameters have."""
    module: torch.nn.Module
    in_double: Callable[[torch.nn.Module], AbstractContextManager[Any]] = nullcontext
    """What has to be around it for it to compute in float64."""


class Inputs(NamedTuple):
    """Images [b, h, w, c], timesteps, and what conditional networks take."""

    x_t: np.ndarray
    t: np.ndarray
    optional: dict[str, Any]
    """label and x_self_cond, where the network has them."""


class Run(NamedTuple):
    """What came out of one network, as NHWC arrays."""

    out: Any
    blocks: dict[str, Any]
    """Outputs of its modules by name, in the order in which they ran."""
    grad_x: Any
    grads: Any
    """A tree of ours."""


def network_pairs(
    network: Network, reference: Reference, tolerance: str, dtype: str, seed: int
) -> Iterator[Pair]:
    """Run both on the same random images; compare outputs block by block and all gradients.

    `tolerance` is an entry of TOLERANCES; gradients are held to the entry "TOLERANCE: gradients".
    """
    inputs = make_inputs(network.config, dtype, seed)
    theirs, names = run_theirs(network, reference, inputs, dtype)
    ours = run_ours(network, inputs, dtype)
    found = matching_blocks(ours.blocks, theirs.blocks, names)
    for match in found.values():
        group = "blocks, from the first to the last"
        yield Pair(group, match.label, tolerance, match.ours, match.theirs)
    group = "the whole network"
    yield Pair(group, "output", tolerance, ours.out, theirs.out)
    tolerance = f"{tolerance}: gradients"
    yield Pair(group, "gradient of the input", tolerance, ours.grad_x, theirs.grad_x)
    norms = [
        np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(run.grads)))
        for run in (ours, theirs)
    ]
    yield Pair(group, "norm of the gradient", tolerance, *norms)
    yield from _gradient_pairs(ours.grads, theirs.grads, list(found), tolerance)


def make_inputs(config: Any, dtype: str, seed: int) -> Inputs:
    """Normal images of the network's size at several t, and random conditions where it has some."""
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


def run_ours(network: Network, inputs: Inputs, dtype: str) -> Run:
    """Our network with its intermediates, and the gradients of the mean of its output's square."""
    module = network.config.module(inputs.x_t.shape[-1], jnp.dtype(dtype))

    def loss_fn(params: Any, x_t: jax.Array) -> Any:
        out, state = module.apply(
            {"params": params}, x_t, jnp.asarray(inputs.t), **inputs.optional,
            capture_intermediates=True, mutable=["intermediates"],
        )  # fmt: skip
        return (out**2).mean(), (out, state["intermediates"])

    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), network.params)
    gradient = jax.jit(jax.grad(loss_fn, (0, 1), has_aux=True))
    (grads, grad_x), (out, state) = gradient(params, inputs.x_t)
    blocks = dict(_outputs(state))
    blocks.pop("", None)
    return Run(out, blocks, grad_x, grads)


def _outputs(state: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, jax.Array]]:
    """What each module that ran once returned, where that is one array, by its dotted path."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from _outputs(value, f"{path}.{name}" if path else name)
        elif len(value) == 1 and isinstance(value[0], jax.Array):
            yield path, value[0]


def run_theirs(
    network: Network, reference: Reference, inputs: Inputs, dtype: str
) -> tuple[Run, dict[str, str]]:
    """The same of the reference; and our names of its parameters."""
    # torch.nn's own .to(): diffusers' says more than it does
    module = torch.nn.Module.to(copy.deepcopy(reference.module), getattr(torch, dtype))
    around = reference.in_double(module) if dtype == "float64" else nullcontext()
    calls: dict[str, list[Block]] = {}
    hooks = [
        child.register_forward_hook(
            lambda _, args, out, name=name: calls.setdefault(name, []).append(
                Block(out, args[0] if args else None)
            )
        )
        for name, child in module.named_modules()
        if name
    ]
    x_t = to_torch(inputs.x_t).requires_grad_()
    with default_dtype(dtype), around:
        out = call(module, x_t, inputs)
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        grad_x, *grads = torch.autograd.grad(
            (out**2).mean(), [x_t, *trained.values()], allow_unused=True, materialize_grads=True
        )
    for hook in hooks:
        hook.remove()
    blocks = {name: made[0] for name, made in calls.items()
              if len(made) == 1 and isinstance(made[0].out, torch.Tensor)}  # fmt: skip
    named = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    named |= dict(zip(trained, grads, strict=True))
    tree, names = _as_ours(network, reference, named)
    return Run(to_jax(out), blocks, to_jax(grad_x), tree), names


@contextmanager
def default_dtype(dtype: str) -> Iterator[None]:
    """Numbers that PyTorch code makes without saying of which type are of `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def call(module: torch.nn.Module, x_t: torch.Tensor, inputs: Inputs) -> torch.Tensor:
    """Call a network of any of the implementations: they differ in the names of conditions."""
    theirs = {"label": ("label", "y", "class_labels"), "x_self_cond": ("x_self_cond",)}
    taken = inspect.signature(module.forward).parameters
    optional = {
        next(name for name in theirs[ours] if name in taken): to_torch(value)
        for ours, value in inputs.optional.items()
    }
    out = module(x_t, torch.from_numpy(inputs.t), **optional)
    return out if isinstance(out, torch.Tensor) else out.sample


def _as_ours(
    network: Network, reference: Reference, grads: Mapping[str, torch.Tensor]
) -> tuple[Any, dict[str, str]]:
    """The gradients of all parameters as a tree of ours, and our name of each."""
    like, peer = parameter_shapes(network.config), PEERS[reference.source]
    places, levels = shapes_of(like), count_levels(like)
    arrays = {name: grad.numpy() for name, grad in grads.items()}
    names = {name: our_name(name, array, peer, places, levels) for name, array in arrays.items()}
    return from_state_dict(arrays, peer, like), names


def _gradient_pairs(ours: Any, theirs: Any, blocks: list[str], tolerance: str) -> Iterator[Pair]:
    """The gradients of the parameters of each block, relative to the largest of all."""
    peak = peak_of(theirs)
    named = [{jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
              for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
             for tree in (ours, theirs)]  # fmt: skip
    owner = {
        name: max((b for b in blocks if name.startswith(f"{b}.")), key=len, default="the rest")
        for name in named[0]
    }
    for block in [*blocks, "the rest"]:
        mine, reference = ({n: g for n, g in tree.items() if owner[n] == block} for tree in named)
        if mine:
            yield Pair("gradients of all parameters", block, tolerance, mine, reference, "", peak)
