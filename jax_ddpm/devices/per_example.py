"""Programs that treat each example independently, on the devices that hold the parameters."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ddpm.devices.layout import place_array
from jax_ddpm.devices.parallel import get_compiler_options
from jax_ddpm.devices.processes import AXIS, finish_in_turn, is_distributed, sort_devices


def compile_per_example(fn: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """Compile `fn(params, examples, shared)`, in which examples do not affect each other's results.

    Every array in `examples` has the examples along its first axis; `shared`, () by default, is the
    same for all. The program runs on the devices that hold the parameters: on one device, or on all
    devices of their mesh, each with its part of the examples. The number of examples must then be a
    multiple of the number of devices (see `round_up`). Every device gets the whole result.
    """
    on_one = jax.jit(fn, compiler_options=get_compiler_options())

    @cache
    def compile_on_mesh(mesh: Mesh, whole: bool) -> Any:
        everywhere = NamedSharding(mesh, PartitionSpec())
        # With sharded parameters, XLA chooses array layouts that its CPU library calls refuse.
        options = get_compiler_options() if whole else None
        return jax.jit(fn, out_shardings=everywhere, compiler_options=options)

    def call(params: Any, examples: Any, shared: Any = ()) -> Any:
        mesh = find_mesh(params)
        if mesh is None:
            return on_one(params, examples, shared)
        whole = all(leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
        program = compile_on_mesh(mesh, whole)
        rows, everywhere = PartitionSpec(mesh.axis_names), PartitionSpec()
        examples, shared = place_tree(examples, mesh, rows), place_tree(shared, mesh, everywhere)
        return finish_in_turn(program(params, examples, shared))

    return call


def place_tree(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Move the arrays of `tree` to the devices of `mesh`, each split according to `spec`."""
    return jax.tree.map(lambda leaf: place_array(leaf, NamedSharding(mesh, spec)), tree)


def replicate_params(params: Any, num_examples: int) -> Any:
    """Copy `params` to at most as many devices as there are examples.

    If there are several processes, copies to all devices. Parameters that are on several devices
    already stay as they are.
    """
    count = jax.device_count() if is_distributed() else min(jax.device_count(), num_examples)
    if count == 1 or find_mesh(params) is not None:
        return params
    return place_tree(params, Mesh(sort_devices()[:count], (AXIS,)), PartitionSpec())


def round_up(num_examples: int, params: Any) -> int:
    """Round `num_examples` up to a multiple of the number of devices that hold `params`."""
    mesh = find_mesh(params)
    count = 1 if mesh is None else mesh.size
    return -(-num_examples // count) * count


def find_mesh(params: Any) -> Mesh | None:
    """Find the mesh of devices that hold `params`; None if they are on a single device."""
    for leaf in jax.tree.leaves(params):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(mesh := sharding.mesh, Mesh):
            return mesh if mesh.size > 1 else None
    return None
