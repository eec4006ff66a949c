"""Which part of each array of a train state lies on which device: rules by the array's path."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

DATA, FSDP = "data", "fsdp"  # the axes of the mesh
MIN_SIZE = 1024  # elements; of a smaller array no part is worth a message

Shape = tuple[int, ...]
SpecOfShape = Callable[[Shape, int], PartitionSpec]
Rule = tuple[str, PartitionSpec | SpecOfShape]


def split_largest_dimension(shape: Shape, parts: int, *, min_size: int = MIN_SIZE) -> PartitionSpec:
    """The largest dimension that divides into `parts`, of equal ones the last; small: none."""
    fitting = [(length, i) for i, length in enumerate(shape) if length % parts == 0 and length]
    if math.prod(shape) < min_size or not fitting:
        return PartitionSpec()
    _, chosen = max(fitting)
    return PartitionSpec(*(FSDP if i == chosen else None for i in range(chosen + 1)))


# The first rule whose pattern is found in the path decides; what no rule is about is on every
# device whole. A path is such as params/mid/conv1/kernel, and the same with ema_params/ or
# opt_state/1/0/mu/ in place of params/, so that a rule for a parameter is one for its moments too.
RULES: tuple[Rule, ...] = (
    (r"^(step|skipped|loss_history)\b", PartitionSpec()),
    (r"", split_largest_dimension),
)


def make_partition_specs(tree: Any, rules: Sequence[Rule], mesh_shape: Mapping[str, int]) -> Any:
    """A PartitionSpec for each array (or shape) of `tree`, by the first of `rules` that fits.

    A rule is a regular expression for the path, and a spec or a function (shape, size of the axis
    "fsdp") -> spec. A dimension that the axes given for it do not divide stays whole.
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
    """`spec` without the axes that do not divide their dimension of `shape`, or are of one device.

    A spec that is longer than the shape loses its end.
    """
    kept = []
    for length, axes in zip(shape, spec, strict=False):
        names = (axes,) if isinstance(axes, str) else tuple(axes or ())
        parts = math.prod(mesh_shape[name] for name in names)
        kept.append(axes if parts > 1 and length % parts == 0 else None)
    while kept and kept[-1] is None:
        kept.pop()
    return PartitionSpec(*kept)
