"""Checkpoints of the whole train state and the configuration, by Orbax."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import jax
from orbax.checkpoint import v1 as ocp

from jax_ddpm.errors import UserError
from jax_ddpm.training.state import Params, TrainState

Checkpointer: TypeAlias = ocp.training.Checkpointer


@contextmanager
def open_checkpoints(
    folder: Path, *, keep: int | None = None, keep_best: bool = False
) -> Iterator[Checkpointer]:
    """The checkpoints in `folder`; saving leaves the newest `keep`, and the one of lowest loss."""
    policies = ocp.training.preservation_policies
    policy = policies.PreserveAll() if keep is None else policies.LatestN(keep)
    if keep_best:
        best = policies.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1)
        policy = policies.AnyPreservationPolicy([policy, best])
    with Checkpointer(folder.absolute(), preservation_policy=policy) as checkpointer:
        yield checkpointer


def save(
    checkpointer: Checkpointer,
    state: TrainState,
    about: dict[str, Any],
    *,
    loss: float | None = None,
) -> None:
    """Write `state`, and the JSON values `about`, as one step that is there whole or not at all.

    `loss` is the mean training loss since the checkpoint before, by which the best is chosen.

    Returns when it is on disk. (In the background, the write would race the next step, to which the
    buffers of `state` are donated.) A step that is already there is left as it is.
    """
    step = int(state.step)
    if checkpointer.latest is None or checkpointer.latest.step != step:
        metrics = None if loss is None else {"loss": loss}
        held = _fields_with_arrays(state)
        checkpointer.save(step, held, force=True, metrics=metrics, custom_metadata=about)


def latest_step(checkpointer: Checkpointer) -> int | None:
    """The step of the newest whole checkpoint."""
    return None if checkpointer.latest is None else checkpointer.latest.step


def best_step(checkpointer: Checkpointer) -> int | None:
    """The step of the checkpoint of lowest loss."""
    found = [info for info in checkpointer.checkpoints if info.metrics]
    return min(found, key=lambda info: info.metrics["loss"]).step if found else None


def restore(checkpointer: Checkpointer, like: TrainState, *, step: int | None = None) -> TrainState:
    """The checkpoint of `step` (the newest), with the shapes, dtypes and devices of `like`.

    Raises UserError if there is none, or if it belongs to another network.
    """
    step = latest_step(checkpointer) if step is None else step
    if step is None:
        raise UserError(f"there is no checkpoint in {checkpointer.directory}")
    expected = _fields_with_arrays(like)
    _require_same_shapes(checkpointer, step, expected, checkpointer.metadata(step).metadata)
    return like.replace(**checkpointer.load(step, expected))


def restore_params(checkpointer: Checkpointer, like: Params, *, step: int) -> Params:
    """The parameters alone of the checkpoint of `step`, whatever else it holds.

    Raises UserError if it belongs to another network.
    """
    stored = checkpointer.metadata(step).metadata["params"]
    _require_same_shapes(checkpointer, step, {"params": like}, {"params": stored})
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        return checkpointer.load(step, {"params": like})["params"]


def _fields_with_arrays(state: TrainState) -> dict[str, Any]:
    """The fields of `state` that are in use; so a checkpoint does not know of fields made later."""
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    return {name: value for name, value in values.items() if jax.tree.leaves(value)}


def _require_same_shapes(checkpointer: Checkpointer, step: int, like: Any, there: Any) -> None:
    expected, stored = _shapes(like), _shapes(there)
    for name in expected | stored:
        if stored.get(name) != expected.get(name):
            raise UserError(
                f"checkpoint {step} in {checkpointer.directory} is of another network: {name} is "
                f"{_describe(stored.get(name))} there, {_describe(expected.get(name))} here"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }


def _describe(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {shape}"
