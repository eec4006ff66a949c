"""How a train step runs on the local devices: the one module that knows about them."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jaxtyping import Array, Key

from jax_ddpm.errors import UserError
from jax_ddpm.training.state import TrainState
from jax_ddpm.training.step import Batch, Metrics, TrainStep

Mode = Literal["jit", "pmap"]
AXIS = "devices"

# XLA on CPUs runs element-wise chains and reductions as fused library calls only if asked to.
CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_ELTWISE,LIBRARY_FUSION_TYPE_REDUCE"
}


def choose_mode(parallel: Literal["auto", "jit", "pmap"], batch_size: int) -> Mode:
    """pmap if asked for, or if there are several local devices; jit otherwise.

    Raises UserError if the batch does not divide over the devices.
    """
    several = jax.local_device_count() > 1
    mode: Mode = "pmap" if parallel == "pmap" or (parallel == "auto" and several) else "jit"
    if batch_size % num_devices(mode):
        raise UserError(
            f"--train.batch-size {batch_size} does not divide over {num_devices(mode)} devices: "
            f"use a multiple of {num_devices(mode)}, or --train.parallel jit"
        )
    return mode


def num_devices(mode: Mode) -> int:
    """How many devices a step runs on."""
    return jax.local_device_count() if mode == "pmap" else 1


def compiler_options() -> dict[str, Any] | None:
    """Options for jax.jit that suit the default backend."""
    return CPU_OPTIONS if jax.default_backend() == "cpu" else None


def parallelize(make_step: Callable[[str | None], TrainStep], mode: Mode) -> TrainStep:
    """Compile the step that `make_step(axis_name)` builds; the state it is given is donated.

    jit: one device. pmap: the batch is split over all local devices; the state has no device axis.
    """
    if mode == "jit":
        return jax.jit(make_step(None), donate_argnums=0, compiler_options=compiler_options())
    mapped = jax.pmap(
        make_step(AXIS), AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=0
    )

    def step(state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        spread = jax.tree.map(lambda a: a.reshape(num_devices(mode), -1, *a.shape[1:]), batch)
        return mapped(state, spread, key)

    return step


def shapes_on_one_device(shapes: Any) -> Any:
    """Shapes that say where their arrays go: to the first local device, whoever saved them."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)


def on_one_device(tree: Any) -> Any:
    """Replicated arrays as arrays of the first local device."""
    return jax.tree.map(lambda a: a.addressable_data(0), tree)
