"""Match the blocks of two networks: blocks with the same parameters belong together."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from jax_ddpm.parity.measure import find_peak, measure_difference


class Block(NamedTuple):
    """A recorded call of a module: its output, and its first argument."""

    out: torch.Tensor
    given: Any


class Match(NamedTuple):
    """One block in both networks."""

    label: str
    """Our path, and their prefix if it differs."""
    ours: Any
    theirs: np.ndarray


def match_blocks(
    ours: Mapping[str, Any], theirs: Mapping[str, Block], names: Mapping[str, str]
) -> dict[str, Match]:
    """Find the blocks that both networks have, by our path and in our order.

    `names` maps their parameter names to ours. Several of their modules may hold the same
    parameters, and one network may add a residual connection inside the block while the other adds
    it outside, so the nearest output is chosen. Layers inside a matched block are left out.
    """
    of_path = {path: _names_under(path, names.values()) for path in ours}
    of_block = {
        block: frozenset(ours for theirs, ours in names.items() if theirs.startswith(f"{block}."))
        for block in theirs
    }
    found: dict[str, Match] = {}
    for held in dict.fromkeys(of_block.values()):
        same = [theirs[name] for name in theirs if of_block[name] == held]
        for path in (path for path in ours if held and of_path[path] == held):
            outputs = [a for block in same for a in read_outputs(block, ours[path].shape)]
            if outputs:
                nearest = min(outputs, key=lambda output: _measure_gap(ours[path], output))
                found[path] = Match(_make_label(path, names), ours[path], nearest)
    whole = {path for path in ours if any(p.startswith(f"{path}.") for p in ours)}
    inside = {path for path in found if any(path.startswith(f"{p}.") for p in found)}
    return {path: match for path, match in found.items() if path in whole or path not in inside}


def _names_under(path: str, names: Collection[str]) -> frozenset[str]:
    return frozenset(name for name in names if name.startswith(f"{path}."))


def _make_label(path: str, names: Mapping[str, str]) -> str:
    theirs = [name.split(".") for name, ours in names.items() if ours.startswith(f"{path}.")]
    shared = []
    for parts in zip(*(name[:-1] for name in theirs), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    label = ".".join(shared)
    return path if label.replace("_", ".") == path.replace("_", ".") else f"{path} = {label}"


def _measure_gap(a: Any, b: np.ndarray) -> float:
    return measure_difference(np.asarray(a), b, find_peak(b)).absolute


def read_outputs(block: Block, shape: tuple[int, ...]) -> list[np.ndarray]:
    """List every reading of their output that has our `shape`.

    Their channels may come first or last, and their block may include a residual connection that
    ours lacks, or lack one that ours includes.
    """
    tensors = [block.out]
    if isinstance(block.given, torch.Tensor) and block.given.shape == block.out.shape:
        tensors += [block.out + block.given, block.out - block.given]
    found = []
    for array in (tensor.detach().numpy() for tensor in tensors):
        if array.size == int(np.prod(shape)):
            layouts = [np.moveaxis(array, 1, -1), array] if array.ndim > 2 else [array]
            found += [a.reshape(shape) for a in layouts if a.shape[-1] == shape[-1]]
    return found
