"""Convert strictly between another implementation's flat state dict and our parameter tree."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ddpm.errors import UserError
from jax_ddpm.interop.peer import Peer, Shapes, WeightLayout

Names = list[tuple[str, str]]


def from_state_dict(state_dict: Mapping[str, np.ndarray], peer: Peer, like: Any) -> Any:
    """Arrange the arrays of `state_dict` as the tree `like` (parameters or shapes).

    Dtypes stay as they are. Raises UserError, naming the first offender, unless arrays and leaves
    match one to one and have the same shapes.
    """
    expected, stages = collect_shapes(like), count_stages(like)
    found: dict[str, np.ndarray] = {}
    for theirs, given in state_dict.items():
        require_real(theirs, given)
        ours = translate_name(theirs, peer, expected, stages)
        layout = find_layout(theirs, peer)
        array = to_our_layout(np.asarray(given), layout, ours) if peer.torch_layout else given
        if ours in found or expected.get(ours) != array.shape:
            raise UserError(
                f"weight {theirs} of shape {given.shape} does not fit: "
                f"{ours} is {expected.get(ours, 'not in this network')}"
            )
        found[ours] = array
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"the weights lack {name} of shape {shape}")
    return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in expected])


def to_state_dict(params: Any, peer: Peer) -> dict[str, np.ndarray]:
    """Convert parameters to the peer's names and layouts: the inverse of `from_state_dict`."""
    backwards, stages = [(ours, theirs) for theirs, ours in peer.names], count_stages(params)
    state_dict = {}
    for ours, leaf in _list_leaves(params):
        theirs = rename(ours, backwards, stages)
        if peer.torch_layout:
            theirs = re.sub(r"(^|\.)(kernel|scale|embedding)$", r"\1weight", theirs)
            array = to_their_layout(np.asarray(leaf), find_layout(theirs, peer), ours)
        else:
            theirs, array = theirs.replace(".", "/"), np.asarray(leaf)
        theirs = peer.prefix + theirs
        state_dict[theirs] = np.ascontiguousarray(array).reshape(array.shape)
    return state_dict


def require_real(name: str, array: np.ndarray) -> None:
    """Raise UserError unless `array` holds real numbers or booleans."""
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise UserError(f"weight {name} has type {array.dtype}, but it must be real numbers")


def collect_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Collect the shape of each leaf by its dotted name."""
    return {name: leaf.shape for name, leaf in _list_leaves(tree)}


def _list_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def count_stages(tree: Any) -> int:
    """Count the resolutions of a U-Net, the stages on its way down."""
    return sum(bool(re.fullmatch(r"down_\d+", name)) for name in tree)


def translate_name(theirs: str, peer: Peer, expected: Shapes, stages: int) -> str:
    """Translate a name to ours; `weight` becomes kernel, scale or embedding, as in `expected`."""
    ours = rename(theirs.replace("/", "."), peer.names, stages)
    if not peer.torch_layout or not re.search(r"(^|\.)weight$", ours):
        return ours
    stem = ours.removesuffix("weight")
    names = [stem + leaf for leaf in ("kernel", "scale", "embedding")]
    return next((name for name in names if name in expected), ours)


def rename(name: str, names: Names, stages: int) -> str:
    """Translate a dotted `name` from left to right by the rules of a table."""
    translated = []
    while name:
        new, name = _translate_first(name, names, stages)
        translated += [new] if new else []
    return ".".join(translated)


def _translate_first(name: str, names: Names, stages: int) -> tuple[str, str]:
    """Translate the first part of `name`; also return the rest of it."""
    for old, new in names:
        if old and (match := re.match(_to_pattern(old) + r"(?:\.|$)", name)):
            numbers = {
                key[-1]: stages - 1 - int(n) if key.startswith("rev") else int(n)
                for key, n in match.groupdict().items()
            }
            return _fill(new, numbers, stages), name[match.end() :]
    first, _, rest = name.partition(".")
    return first, rest


def compile_starts(names: Names) -> re.Pattern[str]:
    """Compile a pattern of all names whose first part has a rule in the table."""
    rules = [re.sub(r"\\\{(\\-)?\w\\\}", r"\\d+", re.escape(old)) for old, _ in names if old]
    return re.compile(f"(?:{'|'.join(rules)})(?:\\.|$)")


def _to_pattern(rule: str) -> str:
    """Make a regular expression in which `{i}` is a group "fori" and `{-i}` a group "revi"."""
    text = re.sub(r"\\\{(\w)\\\}", r"(?P<for\1>\\d+)", re.escape(rule))
    return re.sub(r"\\\{\\-(\w)\\\}", r"(?P<rev\1>\\d+)", text)


def _fill(rule: str, numbers: Mapping[str, int], stages: int) -> str:
    text = re.sub(r"\{(\w)\}", lambda m: str(numbers[m[1]]), rule)
    return re.sub(r"\{-(\w)\}", lambda m: str(stages - 1 - numbers[m[1]]), text)


def find_layout(theirs: str, peer: Peer) -> WeightLayout | None:
    """Find the special layout of a tensor by the ending of its name; None if it has none."""
    for ending, layout in peer.layouts.items():
        if re.search(rf"(^|\.){re.escape(ending)}$", theirs):
            return layout
    return None


def to_our_layout(array: np.ndarray, layout: WeightLayout | None, ours: str) -> np.ndarray:
    """Convert OIHW to HWIO, matrices (O, I) to (I, O) and norms CHW to HWC, or from `layout`."""
    match layout, array.ndim:
        case "pointwise_2d", 4:
            return array[:, :, 0, 0].T if array.shape[2:] == (1, 1) else array
        case "pointwise_1d", 3:
            return array[:, :, 0].T if array.shape[2:] == (1,) else array
        case "channels", 4:
            return array.reshape(-1) if array.size == array.shape[1] else array
        case None, 4 if ours.endswith("kernel"):
            return array.transpose(2, 3, 1, 0)
        case _, 2 if ours.endswith("kernel"):
            return array.T
        case None, 3 if ours.endswith(("scale", "bias")):
            return array.transpose(1, 2, 0)
    return array


def to_their_layout(array: np.ndarray, layout: WeightLayout | None, ours: str) -> np.ndarray:
    """Convert back: the inverse of `to_our_layout`."""
    match layout, array.ndim:
        case "pointwise_2d", 2:
            return array.T[:, :, None, None]
        case "pointwise_1d", 2:
            return array.T[:, :, None]
        case "channels", 1:
            return array[None, :, None, None]
        case None, 4 if ours.endswith("kernel"):
            return array.transpose(3, 2, 0, 1)
        case None, 2 if ours.endswith("kernel"):
            return array.T
        case None, 3 if ours.endswith(("scale", "bias")):
            return array.transpose(2, 0, 1)
    return array
