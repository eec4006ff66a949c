"""What a parallel train step costs each device, as its compiled program says."""

import math
import re
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jax_ddpm.devices.layout import Layout, Mode, assign_shardings
from jax_ddpm.devices.parallel import MakeStep, compile_on_mesh
from jax_ddpm.devices.processes import AXIS
from jax_ddpm.devices.sharding import DATA, FSDP

BYTES = {"f32": 4, "bf16": 2, "f16": 2, "f64": 8, "s32": 4, "u32": 4, "pred": 1}
EXCHANGES = r"all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


class Cost(NamedTuple):
    """The cost of one step on one device."""

    operations: float
    bytes_accessed: float
    bytes_exchanged: float
    """The size of everything that is summed or gathered over the devices."""


def measure_cost(make_step: MakeStep, mode: Mode, state: Any, batch: Any, key: Any) -> Cost:
    """Compile the step for all local devices, with pmap or on a mesh, and read its cost.

    `state`, `batch` (all images of a step) and `key` are shapes: nothing is computed.
    """
    lower = lower_by_pmap if mode == "pmap" else lower_on_mesh
    compiled = lower(make_step, state, batch, key).compile()
    found = compiled.cost_analysis()
    found = found[0] if isinstance(found, list) else found
    exchanged = count_exchanged(compiled.as_text())
    return Cost(float(found["flops"]), float(found["bytes accessed"]), exchanged)


def lower_by_pmap(make_step: MakeStep, state: Any, batch: Any, key: Any) -> Any:
    """Lower the step as `parallelize` maps it with pmap."""
    count = jax.local_device_count()

    def split(leaf: Any) -> Any:
        shape = (count, leaf.shape[0] // count, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    axes = None, jax.tree.map(lambda _: 0, batch), None
    mapped = jax.pmap(make_step(AXIS), AXIS, in_axes=axes, out_axes=None, donate_argnums=0)
    return mapped.lower(state, jax.tree.map(split, batch), key)


def lower_on_mesh(make_step: MakeStep, state: Any, batch: Any, key: Any) -> Any:
    """Lower the step as `parallelize` runs it on a mesh."""
    layout = Layout("mesh")
    rows = NamedSharding(layout.mesh, PartitionSpec((DATA, FSDP)))
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows), batch
    )
    state = assign_shardings("mesh", state)
    return compile_on_mesh(make_step(None), layout).lower(state, batch, key)


def count_exchanged(program: str) -> float:
    """Add up the bytes of the results of all collective operations in the text of a program."""
    results = re.findall(rf"= (.*?) (?:{EXCHANGES})(?:-start)?\(", program)
    arrays = [found for result in results for found in re.findall(r"(\w+)\[([\d,]*)\]", result)]
    sizes = [
        [BYTES.get(dtype, 4), *map(int, shape.split(",") if shape else [])]
        for dtype, shape in arrays
    ]
    return float(sum(map(math.prod, sizes)))
