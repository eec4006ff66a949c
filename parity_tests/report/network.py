"""One network in both frameworks: every block's output, and every gradient."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from measure import difference, peak_of
from twins import draws, to_jax, to_torch

from jax_ddpm.interop import PEERS, Network, Source, from_state_dict
from jax_ddpm.interop.state_dict import count_levels, our_name, shapes_of
from jax_ddpm.models import parameter_shapes
from report.quantities import Pair

TIMESTEPS = (0, 417, 999)


class Reference(NamedTuple):
    """The same network in PyTorch, in float32, with the same weights."""

    against: str
    module: torch.nn.Module
    source: Source
    """Whose names its parameters have."""
    dtypes: tuple[str, ...] = ("float64", "float32")
    to_double: Callable[[torch.nn.Module], None] = lambda module: None
    """What else has to change for it to compute in float64."""


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
    shown = matching_blocks(ours.blocks, theirs.blocks, names)
    for label, mine, reference_out in shown.values():
        yield Pair("blocks, from the first to the last", label, tolerance, mine, reference_out)
    yield Pair("the whole network", "output", tolerance, ours.out, theirs.out)
    tolerance = f"{tolerance}: gradients"
    yield Pair("the whole network", "gradient of the input", tolerance, ours.grad_x, theirs.grad_x)
    norms = [
        np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(run.grads)))
        for run in (ours, theirs)
    ]
    yield Pair("the whole network", "norm of the gradient", tolerance, *norms)
    yield from _gradient_pairs(ours.grads, theirs.grads, list(shown), tolerance)


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
) -> tuple[Run, dict[str, frozenset[str]]]:
    """The same of the reference; and which of our parameters each of its modules holds."""
    module = copy.deepcopy(reference.module).to(getattr(torch, dtype)).eval().requires_grad_()
    if dtype == "float64":
        reference.to_double(module)
    outputs: dict[str, list[Any]] = {}
    hooks = [
        child.register_forward_hook(
            lambda _, args, out, name=name: outputs.setdefault(name, []).append(out)
        )
        for name, child in module.named_modules()
        if name
    ]
    x_t = to_torch(inputs.x_t).requires_grad_()
    with default_dtype(dtype):
        out = call(module, x_t, inputs)
        (out**2).mean().backward()
    for hook in hooks:
        hook.remove()
    grad_x = torch.zeros_like(x_t) if x_t.grad is None else x_t.grad
    grads, names = _gradients(network, reference, module)
    blocks = {name: outs[0] for name, outs in outputs.items()
              if len(outs) == 1 and isinstance(outs[0], torch.Tensor)}  # fmt: skip
    run = Run(to_jax(out), blocks, to_jax(grad_x), grads)
    return run, {block: frozenset(ours for p, ours in names.items() if p.startswith(f"{block}."))
                 for block in run.blocks}  # fmt: skip


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


def _gradients(
    network: Network, reference: Reference, module: torch.nn.Module
) -> tuple[Any, dict[str, str]]:
    """The gradients of all parameters as a tree of ours, and our name of each."""
    like, peer = parameter_shapes(network.config), PEERS[reference.source]
    grads = {
        name: (torch.zeros_like(p) if p.grad is None else p.grad).numpy()
        for name, p in module.named_parameters()
    }
    places, levels = shapes_of(like), count_levels(like)
    names = {name: our_name(name, grad, peer, places, levels) for name, grad in grads.items()}
    return from_state_dict(grads, peer, like), names


def matching_blocks(
    ours: Mapping[str, Any], theirs: Mapping[str, torch.Tensor], held: Mapping[str, frozenset[str]]
) -> dict[str, tuple[str, Any, np.ndarray]]:
    """Our path -> (label, our output, theirs), for blocks that hold the same parameters.

    Several of their modules may hold the same ones (a residual connection around a block): the one
    with the nearest output is meant. Layers inside a block that is shown are left out.
    """
    paths = {path: frozenset(n for names in held.values() for n in names if n.startswith(f"{path}."))
             for path in ours}  # fmt: skip
    found: dict[str, tuple[str, Any, np.ndarray]] = {}
    for block in theirs:
        for path in (path for path, names in paths.items() if names and names == held[block]):
            same = [name for name in theirs if held[name] == held[block]]
            outputs = [a for name in same for a in in_our_layout(theirs[name], ours[path].shape)]
            if outputs and path not in found:
                nearest = min(outputs, key=lambda out: _distance(ours[path], out))
                label = min(same, key=len)
                found[path] = (
                    path if label == path.replace("_", ".") else f"{path} = {label}",
                    ours[path],
                    nearest,
                )
    inner = {path: {p for p in found if path.startswith(f"{p}.")} for path in found}
    leaves = {path for path in ours if not any(p.startswith(f"{path}.") for p in ours)}
    return {path: row for path, row in found.items() if not (path in leaves and inner[path])}


def _distance(a: Any, b: np.ndarray) -> float:
    return difference(np.asarray(a), b, peak_of(b)).absolute


def in_our_layout(tensor: torch.Tensor, shape: tuple[int, ...]) -> list[np.ndarray]:
    """A tensor with its channels last, and as it is, where that can be an array of `shape`."""
    array = tensor.detach().numpy()
    if array.size != int(np.prod(shape)):
        return []
    ways = [np.moveaxis(array, 1, -1), array] if array.ndim > 2 else [array]
    return [way.reshape(shape) for way in ways if way.shape[-1] == shape[-1]]


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
