"""Programs that treat every example alone, on the devices where the parameters are."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ddpm.devices.layout import place_array
from jax_ddpm.devices.parallel import get_compiler_options
from jax_ddpm.devices.processes import AXIS, finish_in_turn, is_distributed, sort_devices


def compile_per_example(fn: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """Compile `fn(params, examples, shared)`, in which no example affects the result of another.

    Every array of the tree `examples` has the examples as its first axis; `shared`, () by default,
    is the same for all of them. The program runs where the parameters are: on one device, or on all
    devices of their mesh, each with its part of the examples. The number of examples must then be a
    multiple of the number of devices (see `round_up`). Every device gets the whole result.
    """
    on_one = jax.jit(fn, compiler_options=get_compiler_options())

    @cache
    def compile_on_mesh(mesh: Mesh, whole: bool) -> Any:
        everywhere = NamedSharding(mesh, PartitionSpec())
        # With sharded parameters, XLA gives arrays layouts that its CPU library calls refuse.
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
    """The arrays of `tree` on the devices of `mesh`, each split as `spec` says."""
    return jax.tree.map(lambda leaf: place_array(leaf, NamedSharding(mesh, spec)), tree)


def replicate_params(params: Any, num_examples: int) -> Any:
    """Copy `params` to as many devices as there are examples; with several processes, to all.

    Parameters that are on several devices already stay as they are.
    """
    count = jax.device_count() if is_distributed() else min(jax.device_count(), num_examples)
    if count == 1 or find_mesh(params) is not None:
        return params
    return place_tree(params, Mesh(sort_devices()[:count], (AXIS,)), PartitionSpec())


def round_up(num_examples: int, params: Any) -> int:
    """`num_examples`, or the next multiple of the number of devices that hold `params`."""
    mesh = find_mesh(params)
    count = 1 if mesh is None else mesh.size
    return -(-num_examples // count) * count


def find_mesh(params: Any) -> Mesh | None:
    """The mesh of devices that hold `params`; None if they are on a single device."""
    for leaf in jax.tree.leaves(params):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(mesh := sharding.mesh, Mesh):
            return mesh if mesh.size > 1 else None
    return None
