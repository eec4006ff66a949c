"""How a train state is distributed over the devices, and how arrays get there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jax_ddpm.devices.processes import (
    AXIS,
    finish_in_turn,
    get_process,
    is_distributed,
    sort_devices,
)
from jax_ddpm.devices.sharding import DATA, FSDP, RULES, Rule, make_partition_specs
from jax_ddpm.errors import UserError
from jax_ddpm.training.state import TrainState

Mode = Literal["jit", "pmap", "mesh"]
Parallel = Literal["auto", "jit", "pmap", "mesh"]


@dataclass(frozen=True)
class Layout:
    """How a train state is distributed: on one device, replicated, or sharded.

    `fsdp`, only for mode "mesh", is the number of devices that each array selected by `rules` is
    sharded over (see `make_partition_specs`); with 1, no array is sharded.
    """

    mode: Mode
    fsdp: int = 1
    rules: Sequence[Rule] = RULES

    @property
    def mesh(self) -> Mesh:
        """All devices, ordered by process."""
        devices = sort_devices()
        if self.mode == "mesh":
            return Mesh(devices.reshape(-1, self.fsdp), (DATA, FSDP))
        return Mesh(devices, (AXIS,))

    def of(self, tree: Any) -> Any:
        """The sharding of each array (or shape) of a train state."""
        if self.mode == "jit":
            sharding = SingleDeviceSharding(jax.local_devices()[0])
            return jax.tree.map(lambda _: sharding, tree)
        mesh, rules = self.mesh, self.rules if self.fsdp > 1 else ()
        specs = make_partition_specs(tree, rules, mesh.shape)
        is_spec = lambda leaf: isinstance(leaf, PartitionSpec)  # noqa: E731 - in some versions a tuple
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)


def choose_mode(parallel: Parallel, batch_size: int, fsdp: int = 1) -> Mode:
    """Choose the mode: `parallel` itself; for "auto", pmap on several devices, else jit.

    Raises UserError if the batch does not divide over the devices, if the number of devices is not
    a multiple of `fsdp`, and for jit in one of several processes.
    """
    several = jax.local_device_count() > 1 or is_distributed()
    mode: Mode = ("pmap" if several else "jit") if parallel == "auto" else parallel
    if mode == "jit" and is_distributed():
        raise UserError(
            "--train.parallel jit runs on one device of one process: use pmap or mesh with "
            "--distributed"
        )
    count = count_devices(mode)
    if batch_size % count:
        way_out = "" if is_distributed() else ", or --train.parallel jit"
        raise UserError(
            f"--train.batch-size {batch_size} does not divide over {count} devices: "
            f"use a multiple of {count}{way_out}"
        )
    if count % fsdp:
        raise UserError(
            f"--train.fsdp {fsdp} does not divide the number of devices, {count}: "
            "use one of its divisors"
        )
    return mode


def count_devices(mode: Mode) -> int:
    """Count the devices that a step runs on, over all processes."""
    return 1 if mode == "jit" else jax.local_device_count() * get_process()[1]


def place_state(tree: Any, layout: Layout) -> Any:
    """Distribute a train state according to `layout`, unless it is on those devices already."""
    first = jax.tree.leaves(tree)[0]
    devices = getattr(first, "sharding", None) and first.sharding.device_set
    if devices == set(layout.mesh.devices.flat):
        return tree
    return jax.tree.map(place_array, tree, layout.of(tree))


def place_array(leaf: Any, sharding: Any) -> Any:
    """Move an array that every process holds to the devices of `sharding`."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data(leaf)
        return jax.random.wrap_key_data(place_array(data, sharding), impl=jax.random.key_impl(leaf))
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return leaf if leaf.sharding == sharding else make_reshard_fn(sharding)(leaf)
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


@cache
def make_reshard_fn(sharding: Any) -> Callable[[Any], Any]:
    """Build a program that moves an array spread over several processes to `sharding`."""
    program = jax.jit(lambda a: a, out_shardings=sharding)
    return lambda a: finish_in_turn(program(a))


def draw_on_devices(init: Callable[[Any], Any], key: Any, layout: Layout) -> Any:
    """Draw the parameters `init(key)` on the host, and distribute sharded ones by `layout`.

    So no device ever holds the whole of sharded parameters, and the small programs that draw them
    compile quickly.
    """
    with jax.default_device(find_host()):
        params = init(key)
    return params if layout.fsdp == 1 else place_state(params, layout)


def find_host() -> jax.Device | None:
    """The CPU as a device; None if JAX was told to leave it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def make_state(init: Callable[[Any], TrainState], start: Any, layout: Layout) -> Any:
    """Compute the state `init(start)`, such as one from parameters, distributed by `layout`.

    No device ever holds the whole of a sharded state.
    """
    if layout.fsdp == 1:
        state = jax.jit(init)(start)
        if layout.mode != "jit":
            return place_state(state, layout)
        # Commit it to the device, as a step does; otherwise the second step would compile again.
        return jax.tree.map(jax.device_put, state, layout.of(state))
    return jax.jit(init, out_shardings=layout.of(jax.eval_shape(init, start)))(start)


def assign_shardings(mode: Mode, shapes: Any, fsdp: int = 1) -> Any:
    """Add shardings to shapes, so that arrays are loaded straight to their devices."""
    shardings = Layout(mode, fsdp).of(shapes)
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def replicate(tree: Any, mode: Mode) -> Any:
    """Copy arrays that every process holds to each device that a step runs on."""
    if mode == "jit":
        return jax.device_put(tree, jax.local_devices()[0])
    everywhere = NamedSharding(Layout(mode).mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: place_array(leaf, everywhere), tree)


def to_one_device(tree: Any) -> Any:
    """Gather whole arrays on the first local device, however they are distributed."""

    def whole(leaf: Any) -> Any:
        if not leaf.is_fully_replicated:
            leaf = make_reshard_fn(NamedSharding(leaf.sharding.mesh, PartitionSpec()))(leaf)
        return leaf.addressable_data(0)

    return jax.tree.map(whole, tree)


def shapes_to_load(shapes: Any) -> Any:
    """Add shardings to shapes: one device, or every device if there are several processes."""
    return assign_shardings("pmap" if is_distributed() else "jit", shapes)


def get_device_name() -> str:
    """Return the model name of the default device."""
    return str(jax.devices()[0].device_kind)
