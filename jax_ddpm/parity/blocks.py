"""Which block of one network is which of the other: those that hold the same parameters."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from jax_ddpm.parity.measure import difference, peak_of


class Block(NamedTuple):
    """What a module returned, and what it was given first."""

    out: torch.Tensor
    given: Any


class Match(NamedTuple):
    """One block in both networks."""

    label: str
    """Our path, and their prefix where it is another."""
    ours: Any
    theirs: np.ndarray


def matching_blocks(
    ours: Mapping[str, Any], theirs: Mapping[str, Block], names: Mapping[str, str]
) -> dict[str, Match]:
    """The blocks that both have, by our path, in their order; `names`: their parameter -> ours.

    Several of their modules may hold the same parameters, and a residual connection may be inside
    one block and outside of the other: the nearest output is meant. Layers of a block that is
    found are left out.
    """
    of_path = {path: _under(path, names.values()) for path in ours}
    of_block = {name: frozenset(o for t, o in names.items() if t.startswith(f"{name}."))
                for name in theirs}  # fmt: skip
    found: dict[str, Match] = {}
    for held in dict.fromkeys(of_block.values()):
        same = [theirs[name] for name in theirs if of_block[name] == held]
        for path in (path for path in ours if held and of_path[path] == held):
            ways = [a for block in same for a in in_our_layout(block, ours[path].shape)]
            if ways:
                nearest = min(ways, key=lambda way: _distance(ours[path], way))
                found[path] = Match(_label(path, names), ours[path], nearest)
    whole = {path for path in ours if any(p.startswith(f"{path}.") for p in ours)}
    inside = {path for path in found if any(path.startswith(f"{p}.") for p in found)}
    return {path: match for path, match in found.items() if path in whole or path not in inside}


def _under(path: str, names: Any) -> frozenset[str]:
    return frozenset(name for name in names if name.startswith(f"{path}."))


def _label(path: str, names: Mapping[str, str]) -> str:
    theirs = [name.split(".") for name, ours in names.items() if ours.startswith(f"{path}.")]
    shared = []
    for parts in zip(*(name[:-1] for name in theirs), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    label = ".".join(shared)
    return path if label.replace("_", ".") == path.replace("_", ".") else f"{path} = {label}"


def _distance(a: Any, b: np.ndarray) -> float:
    return difference(np.asarray(a), b, peak_of(b)).absolute


def in_our_layout(block: Block, shape: tuple[int, ...]) -> list[np.ndarray]:
    """What may be our output of `shape`: theirs, channels last or as it is, with or without what
    they were given."""
    tensors = [block.out]
    if isinstance(block.given, torch.Tensor) and block.given.shape == block.out.shape:
        tensors += [block.out + block.given, block.out - block.given]
    ways = []
    for array in (tensor.detach().numpy() for tensor in tensors):
        if array.size == int(np.prod(shape)):
            layouts = [np.moveaxis(array, 1, -1), array] if array.ndim > 2 else [array]
            ways += [way.reshape(shape) for way in layouts if way.shape[-1] == shape[-1]]
    return ways
