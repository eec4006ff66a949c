"""Rules for sharding the arrays of a train state, matched by each array's path."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

DATA, FSDP = "data", "fsdp"  # the axes of the mesh
MIN_SIZE = 1024  # elements; sharding a smaller array is not worth the communication

Shape = tuple[int, ...]
SpecOfShape = Callable[[Shape, int], PartitionSpec]
Rule = tuple[str, PartitionSpec | SpecOfShape]


def split_largest_dimension(shape: Shape, parts: int, *, min_size: int = MIN_SIZE) -> PartitionSpec:
    """Split the largest dimension that `parts` divides, the last if several; none if small."""
    fitting = [(length, i) for i, length in enumerate(shape) if length % parts == 0 and length]
    if math.prod(shape) < min_size or not fitting:
        return PartitionSpec()
    _, chosen = max(fitting)
    return PartitionSpec(*(FSDP if i == chosen else None for i in range(chosen + 1)))


# The first rule whose pattern is found in the path decides; every device holds the whole of an
# array that no rule matches. Paths look like params/mid/conv1/kernel, with ema_params/ or
# opt_state/1/0/mu/ in place of params/, so a rule for a parameter covers its averages and moments.
RULES: tuple[Rule, ...] = (
    (r"^(step|skipped|loss_history)\b", PartitionSpec()),
    (r"", split_largest_dimension),
)


def make_partition_specs(tree: Any, rules: Sequence[Rule], mesh_shape: Mapping[str, int]) -> Any:
    """Make a PartitionSpec for each array (or shape) of `tree`, from the first rule that matches.

    A rule is a regular expression for the path, with a spec or a function (shape, size of the axis
    "fsdp") -> spec. A dimension that its mesh axes do not divide stays whole.
    """

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rule = next((rule for pattern, rule in rules if re.search(pattern, name)), PartitionSpec())
        if not isinstance(rule, PartitionSpec):
            rule = rule(leaf.shape, mesh_shape[FSDP])
        return drop_uneven_axes(rule, leaf.shape, mesh_shape)

    return jax.tree_util.tree_map_with_path(spec, tree)


def drop_uneven_axes(
    spec: PartitionSpec, shape: Shape, mesh_shape: Mapping[str, int]
) -> PartitionSpec:
    """Drop the mesh axes in `spec` that do not divide their dimension or have only one device.

    A spec longer than the shape is cut off.
    """
    kept = []
    for length, axes in zip(shape, spec, strict=False):
        names = (axes,) if isinstance(axes, str) else tuple(axes or ())
        parts = math.prod(mesh_shape[name] for name in names)
        kept.append(axes if parts > 1 and length % parts == 0 else None)
    while kept and kept[-1] is None:
        kept.pop()
    return PartitionSpec(*kept)
