"""From a flat state dict of another implementation to parameters, strictly."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jax_ddpm.errors import UserError
from jax_ddpm.interop.tables import TABLES, SourceName

Shape = tuple[int, ...]


def from_state_dict(state_dict: Mapping[str, np.ndarray], source: SourceName, like: Any) -> Any:
    """The arrays of `state_dict` in the tree of `like` (parameters or shapes); dtypes are kept.

    Raises UserError, naming the first offender, unless every array has exactly one place of its
    shape and every place is filled.
    """
    table = TABLES[source]
    places: dict[str, Shape] = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    num_levels = sum(name.startswith("down_") for name in like)
    found: dict[str, np.ndarray] = {}
    for theirs, array in state_dict.items():
        ours = rename(theirs.replace("/", "."), table.names, num_levels)
        if table.torch_layout:
            ours, array = from_torch_layout(ours, array, places)
        if ours in found or places.get(ours) != array.shape:
            raise UserError(
                f"{source} weight {theirs} of shape {array.shape} does not fit: "
                f"{ours} is {places.get(ours, 'not in this network')}"
            )
        found[ours] = array
    if missing := places.keys() - found.keys():
        raise UserError(f"the {source} weights have nothing for {min(missing)}")
    return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in places])


def rename(name: str, names: list[tuple[str, str]], num_levels: int) -> str:
    """Translate a dotted `name` from left to right by the rules of a table."""
    translated = []
    while name:
        ours, name = _translate_first(name, names, num_levels)
        translated += [ours] if ours else []
    return ".".join(translated)


def _translate_first(name: str, names: list[tuple[str, str]], num_levels: int) -> tuple[str, str]:
    for theirs, ours in names:
        pattern = re.escape(theirs).replace(r"\{i\}", r"(?P<i>\d+)")
        if match := re.match(rf"{pattern}(?:\.|$)", name):
            if "i}" in ours:
                i = int(match["i"])
                ours = ours.replace("{i}", str(i)).replace("{-i}", str(num_levels - 1 - i))
            return ours, name[match.end() :]
    first, _, rest = name.partition(".")
    return first, rest


def from_torch_layout(
    name: str, array: np.ndarray, places: Mapping[str, Shape]
) -> tuple[str, np.ndarray]:
    """PyTorch's `weight` as `kernel` or `scale`: OIHW -> HWIO, matrices (O, I) -> (I, O)."""
    if not name.endswith("weight"):
        return name, array
    name = name.removesuffix("weight") + ("scale" if array.ndim == 1 else "kernel")
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)  # [h, w, in, out]
        a_matrix_here = array.shape[:2] == (1, 1) and len(places.get(name, ())) == 2
        return name, array[0, 0] if a_matrix_here else array
    return name, array.T
