"""Programs that do the same for each image, on the devices where the parameters are."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_ddpm.devices.layout import place
from jax_ddpm.devices.parallel import compiler_options
from jax_ddpm.devices.processes import AXIS, devices_by_process, in_turn, several_processes


def by_example(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `fn(params, examples, *more)`, of which no result depends on more than one example.

    It runs where the parameters are: on one device; or on all devices of their mesh, each with its
    part of the examples. Arguments are split that are as long as `examples`, which the number of
    devices must divide (see `fill_up`). The results are whole on every device.
    """
    alone = jax.jit(fn, compiler_options=compiler_options())

    @cache
    def together(mesh: Mesh, whole: bool) -> Any:
        everywhere = NamedSharding(mesh, PartitionSpec())
        # Of arrays in parts, library calls on CPUs refuse some layouts that XLA gives them.
        options = compiler_options() if whole else None
        return jax.jit(fn, out_shardings=everywhere, compiler_options=options)

    def call(params: Any, *args: Any) -> Any:
        mesh = mesh_of(params)
        if mesh is None:
            return alone(params, *args)
        whole = all(leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
        return in_turn(together(mesh, whole)(params, *split(args, mesh)))

    return call


def spread(params: Any, num_examples: int) -> Any:
    """`params` whole on as many devices as there is work for; of several processes, on all.

    What lies on several devices already is left there.
    """
    count = jax.device_count() if several_processes() else min(jax.device_count(), num_examples)
    if count == 1 or mesh_of(params) is not None:
        return params
    everywhere = NamedSharding(Mesh(devices_by_process()[:count], (AXIS,)), PartitionSpec())
    return jax.tree.map(lambda leaf: place(leaf, everywhere), params)


def fill_up(num_examples: int, params: Any) -> int:
    """The next larger number of examples that divides over the devices of `params`."""
    mesh = mesh_of(params)
    count = 1 if mesh is None else mesh.size
    return -(-num_examples // count) * count


def mesh_of(params: Any) -> Mesh | None:
    """The devices on which `params` are, if they are on several."""
    for leaf in jax.tree.leaves(params):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(mesh := sharding.mesh, Mesh):
            return mesh if mesh.size > 1 else None
    return None


def split(args: tuple[Any, ...], mesh: Mesh) -> tuple[Any, ...]:
    """The arguments on the devices of `mesh`: in parts what has a row per example, else whole."""
    length = len(jax.tree.leaves(args)[0])
    rows, everywhere = PartitionSpec(mesh.axis_names), PartitionSpec()

    def put(leaf: Any) -> Any:
        by_row = np.ndim(leaf) > 0 and len(leaf) == length
        return place(leaf, NamedSharding(mesh, rows if by_row else everywhere))

    return jax.tree.map(put, args)
