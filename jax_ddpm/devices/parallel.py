"""Run the train step on the devices of one or several processes."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from jax_ddpm.devices.layout import Layout, Mode, place_state
from jax_ddpm.devices.processes import AXIS, finish_in_turn, is_distributed
from jax_ddpm.devices.sharding import DATA, FSDP, RULES, Rule
from jax_ddpm.training.state import TrainState
from jax_ddpm.training.step import StepInput, TrainStep
from jax_ddpm.training.update import Metrics

MakeStep = Callable[[str | None], TrainStep]


# On CPUs, XLA fuses reductions into library calls only on request. Fusing element-wise chains too
# (LIBRARY_FUSION_TYPE_ELTWISE) makes training steps 3 to 11 % slower.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}


def get_compiler_options() -> dict[str, Any] | None:
    """Return options for jax.jit that make programs faster on the default backend."""
    return CPU_OPTIONS if jax.default_backend() == "cpu" else None


def loops_over_steps() -> bool:
    """Whether a program may loop over training steps on the default backend.

    Not on CPUs, where XLA makes the gradients of convolutions in a loop many times slower.
    """
    return jax.default_backend() != "cpu"


def parallelize(
    make_step: MakeStep,
    mode: Mode,
    *,
    fsdp: int = 1,
    rules: Sequence[Rule] = RULES,
    batch_axis: int = 0,
) -> TrainStep:
    """Compile the step that `make_step(axis_name)` builds. The step donates the state.

    jit: one device. pmap: data parallel; `make_step` is given the name of the device axis. mesh:
    one program on sharded arrays, with the state sharded as in `Layout(mode, fsdp, rules)`. The
    state never has a device axis.

    NumPy arrays in a batch hold the examples of this process along `batch_axis` (1 after
    `scan_steps`). JAX arrays are data that every device holds whole (see `replicate`).
    """
    if mode == "jit":
        return jax.jit(make_step(None), donate_argnums=0, compiler_options=get_compiler_options())
    layout = Layout(mode, fsdp, rules)
    if mode == "pmap":
        return compile_by_pmap(make_step(AXIS), layout, batch_axis)
    program = compile_on_mesh(make_step(None), layout)
    rows = NamedSharding(layout.mesh, PartitionSpec(*[None] * batch_axis, (DATA, FSDP)))

    def step(
        state: TrainState, batch: StepInput, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        def shard(leaf: Any) -> Any:
            if isinstance(leaf, jax.Array):
                return leaf
            return jax.make_array_from_process_local_data(rows, leaf)

        return finish_in_turn(program(place_state(state, layout), jax.tree.map(shard, batch), key))

    return step


def compile_on_mesh(step: TrainStep, layout: Layout) -> Any:
    """Compile `step` for arrays on the mesh of `layout`; the state keeps its shardings."""

    def on_mesh(
        state: TrainState, batch: StepInput, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        new, metrics = step(state, batch, key)
        everywhere = NamedSharding(layout.mesh, PartitionSpec())
        return jax.lax.with_sharding_constraint((new, metrics), (layout.of(new), everywhere))

    return jax.jit(on_mesh, donate_argnums=0)


def compile_by_pmap(step: TrainStep, layout: Layout, batch_axis: int) -> TrainStep:
    """Compile `step` for every device, each with its part of the batch and the whole state."""

    @cache
    def mapped(treedef: Any, is_data: tuple[bool, ...]) -> Any:
        axes = jax.tree.unflatten(treedef, [None if data else batch_axis for data in is_data])
        return jax.pmap(step, AXIS, in_axes=(None, axes, None), out_axes=None, donate_argnums=0)

    def split(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return leaf
        before, after = leaf.shape[:batch_axis], leaf.shape[batch_axis + 1 :]
        return leaf.reshape(*before, jax.local_device_count(), -1, *after)

    def on_all(
        state: TrainState, batch: StepInput, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        leaves, treedef = jax.tree.flatten(batch)
        fn = mapped(treedef, tuple(isinstance(leaf, jax.Array) for leaf in leaves))
        if is_distributed():
            state = place_state(state, layout)
        new, metrics = finish_in_turn(
            fn(state, jax.tree.unflatten(treedef, map(split, leaves)), key)
        )
        return (join_shards(new, layout) if is_distributed() else new), metrics

    return on_all


def join_shards(tree: Any, layout: Layout) -> Any:
    """Turn what pmap returns in each process into arrays over all devices, without copying."""
    everywhere = NamedSharding(layout.mesh, PartitionSpec())

    def join(leaf: Any) -> Any:
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, everywhere, parts)

    return jax.tree.map(join, tree)
