"""Save, keep and remove checkpoints of the train state and the configuration, with Orbax.

A checkpoint is a folder named after its step. It gets that name only when it is complete, and is
renamed before it is removed, so a killed process never leaves half a checkpoint under that name.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jax_ddpm.devices.processes import is_main_process, max_over_processes
from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import remove
from jax_ddpm.optim.averages import Params
from jax_ddpm.runs import stored
from jax_ddpm.runs.recovery import find_steps
from jax_ddpm.runs.retention import Keep, choose_kept, find_best
from jax_ddpm.runs.stored import Damaged
from jax_ddpm.training.state import TrainState

T = TypeVar("T")

UNFINISHED = (".orbax-checkpoint-tmp", ".removed")  # what a killed process may leave behind
NONE = -1  # no step
DAMAGED = ".damaged"  # suffix of a checkpoint that cannot be read, until its step is saved again


class Pending(NamedTuple):
    """A checkpoint that is being written in the background."""

    step: int
    response: Any


@dataclass
class Checkpoints:
    """A folder of checkpoints, which ones to keep, and what this process knows about them."""

    directory: Path
    keep: Keep
    pending: Pending | None = None
    damaged: dict[int, str] = field(default_factory=dict)
    """Step of each checkpoint that cannot be read -> the reason."""
    losses: dict[int, float | None] = field(default_factory=dict)
    """Step of each checkpoint -> its loss, if it was saved with one."""
    guard: Callable[[], object] = bool
    """Called before and after a save; raises UserError if the folder is no longer the run's."""


@contextmanager
def open_checkpoints(
    folder: Path,
    *,
    keep: int | None = None,
    keep_best: bool = False,
    keep_every: int | None = None,
    guard: Callable[[], object] = bool,
) -> Iterator[Checkpoints]:
    """Open the checkpoints in `folder`. Reading changes nothing there; saving makes the folder.

    After each save, these stay: the newest `keep` (None: all); with `keep_best`, the one with the
    lowest loss; and every multiple of `keep_every` steps. Leaving the context waits until the last
    checkpoint is written, and raises UserError if writing fails. `guard()` raises UserError if
    nothing may be written any more, because `folder` is no longer the same.
    """
    checkpoints = Checkpoints(folder.absolute(), Keep(keep, keep_best, keep_every), guard=guard)
    try:
        yield checkpoints
    except BaseException:
        try:
            wait(checkpoints)
        except UserError as failed:
            stored.warn(f"error: {failed}")
        raise
    wait(checkpoints)


def save(
    checkpoints: Checkpoints,
    state: TrainState,
    about: dict[str, Any],
    *,
    loss: float | None = None,
) -> None:
    """Write `state` and the JSON values `about` as the checkpoint of its step, all or nothing.

    `loss` is the mean training loss since the previous checkpoint; the best checkpoint is the one
    with the lowest. Returns once the state is copied, so its buffers can then be donated; the rest
    happens in the background. Does nothing if there is a complete checkpoint of this step. Raises
    UserError if writing cannot start, or if the previous save failed (see `wait`).
    """
    wait(checkpoints)
    step = int(state.step)
    checkpoints.guard()
    if step in list_steps(checkpoints):
        return
    try:
        if is_main_process():
            _make_room(checkpoints, step)
        response = stored.write(_path(checkpoints, step), state, about, loss)
    except Exception as error:
        raise _failed(checkpoints, step, error) from error
    checkpoints.pending = Pending(step, response)
    checkpoints.losses[step] = loss


def wait(checkpoints: Checkpoints) -> None:
    """Wait until the last save is on disk, then remove the checkpoints that are not kept.

    Raises UserError if the checkpoint could not be written (earlier ones stay as they are), or if
    an old one could not be removed.
    """
    pending, checkpoints.pending = checkpoints.pending, None
    if pending is None:
        return
    try:
        pending.response.result()
    except Exception as error:
        _require_same_folder(checkpoints, pending.step)
        raise _failed(checkpoints, pending.step, error) from error
    _require_same_folder(checkpoints, pending.step)
    checkpoints.damaged.pop(pending.step, None)
    if is_main_process():
        _remove_old(checkpoints)


def _require_same_folder(checkpoints: Checkpoints, step: int) -> None:
    """Call the guard. If the run was moved, remove what was written under its name since then.

    That is a folder with nothing but the checkpoint of `step`.
    """
    try:
        checkpoints.guard()
    except UserError:
        folder = checkpoints.directory.parent
        with suppress(OSError):
            alone = [path.name for path in folder.iterdir()] == [checkpoints.directory.name]
            if alone and all(p.name.startswith(str(step)) for p in checkpoints.directory.iterdir()):
                remove(checkpoints.directory)
                folder.rmdir()
        raise


def list_steps(checkpoints: Checkpoints) -> list[int]:
    """List the steps of the checkpoints on disk, ascending, without those found damaged."""
    return [s for s in find_steps(checkpoints.directory) if s not in checkpoints.damaged]


def find_latest_step(checkpoints: Checkpoints) -> int | None:
    """The step of the newest checkpoint, not counting those found damaged; None without any."""
    return max(list_steps(checkpoints), default=None)


def find_best_step(checkpoints: Checkpoints) -> int | None:
    """The step of the checkpoint with the lowest loss; None if no checkpoint has a loss."""
    wait(checkpoints)
    return find_best(list_steps(checkpoints), _losses(checkpoints))


def restore(checkpoints: Checkpoints, like: TrainState, *, step: int | None = None) -> TrainState:
    """Restore a checkpoint with the shapes, dtypes and devices of `like`, and verify it.

    By default, this is the newest intact one (see `read_newest`). Raises UserError if there is none
    or if it belongs to another network or a newer version, and Damaged if the checkpoint of `step`
    is damaged.
    """
    wait(checkpoints)
    if step is None:
        return read_newest(checkpoints, lambda step: restore(checkpoints, like, step=step))
    return stored.read(_path(checkpoints, step), like)


def restore_params(checkpoints: Checkpoints, like: Params, *, step: int) -> Params:
    """Restore only the parameters from the checkpoint of `step`, and verify them.

    Raises UserError if it belongs to another network, and Damaged if it cannot be read.
    """
    return stored.read_params(_path(checkpoints, step), like)


def restore_field(checkpoints: Checkpoints, name: str, *, step: int) -> Any:
    """Restore one field of the state in the checkpoint of `step`, whatever network it belongs to.

    Raises the errors that `restore_params` does.
    """
    return stored.read_field(_path(checkpoints, step), name)


def is_intact(checkpoints: Checkpoints, step: int) -> bool:
    """Whether the checkpoint of `step` exists and the checksums of all its arrays are right."""
    if step not in list_steps(checkpoints):
        return False
    try:
        stored.verify(_path(checkpoints, step))
    except UserError:
        return False
    return True


def describe(checkpoints: Checkpoints, step: int) -> dict[str, Any]:
    """Read the description of the checkpoint of `step`: `about` as given to `save`, and more."""
    path = _path(checkpoints, step)
    with stored.agree_on_damage(path):
        return stored.describe(path)


def read_newest(checkpoints: Checkpoints, read: Callable[[int], T]) -> T:
    """Call `read(step)` for the newest step, then for older ones as long as it raises Damaged.

    Reports damaged checkpoints on stderr. Skips checkpoints that another process removes meanwhile.
    The processes of one job all read the same checkpoint. Raises UserError if none is intact.
    """
    gone: set[int] = set()
    while True:
        step = max((step for step in list_steps(checkpoints) if step not in gone), default=NONE)
        step = -max_over_processes(-step)  # the newest that every process has
        if step == NONE:
            break
        try:
            found = read(step)
        except Damaged as error:
            if not _path(checkpoints, step).exists():
                gone.add(step)
                continue
            checkpoints.damaged[step] = error.reason
            stored.warn(f"{error}, so it is skipped")
            continue
        if checkpoints.damaged:
            stored.warn(f"The checkpoint of step {step} is intact and is used instead.")
        return found
    if checkpoints.damaged:
        bad = "; ".join(f"step {step}: {why}" for step, why in checkpoints.damaged.items())
        raise UserError(
            f"no checkpoint in {checkpoints.directory} is intact ({bad}): restore the folder from "
            "a backup, give a checkpoint that holds another step its name, or start again with "
            "another --run"
        )
    raise UserError(f"there is no checkpoint in {checkpoints.directory}")


def _path(checkpoints: Checkpoints, step: int) -> Path:
    return checkpoints.directory / str(step)


def _losses(checkpoints: Checkpoints) -> dict[int, float]:
    """Read the losses of the checkpoints on disk that were saved with one."""
    known = checkpoints.losses
    for step in list_steps(checkpoints):
        if step not in known:
            try:
                known[step] = stored.read_loss(_path(checkpoints, step))
            except Damaged:
                known[step] = None
    return {step: loss for step, loss in known.items() if loss is not None}


def _make_room(checkpoints: Checkpoints, step: int) -> None:
    """Remove what killed processes left behind, and move a damaged checkpoint of `step` aside."""
    checkpoints.directory.mkdir(parents=True, exist_ok=True)
    for path in checkpoints.directory.iterdir():
        if path.name.endswith(UNFINISHED):
            remove(path)
    damaged = _path(checkpoints, step)
    if damaged.exists() or damaged.is_symlink():
        aside = damaged.with_name(damaged.name + DAMAGED)
        remove(aside)
        damaged.rename(aside)
    checkpoints.losses.pop(step, None)


def _remove_old(checkpoints: Checkpoints) -> None:
    """Remove checkpoints that are not kept, and damaged ones that have been saved again."""
    steps = list_steps(checkpoints)
    losses = _losses(checkpoints) if checkpoints.keep.best else {}
    old = [str(step) for step in set(steps) - choose_kept(checkpoints.keep, steps, losses)]
    for name in [*old, *(f"{step}{DAMAGED}" for step in steps)]:
        path = checkpoints.directory / name
        if path.exists():
            removed = path.with_name(f"{name}.removed")
            try:
                path.rename(removed)
                remove(removed)
            except OSError as error:
                raise UserError(
                    f"the old checkpoint {path} could not be removed ({error.strerror or error}); "
                    f"the one of step {max(steps)} is intact. Make sure that the folder is "
                    "writable, then run the same command again"
                ) from error


def _failed(checkpoints: Checkpoints, step: int, error: Exception) -> UserError:
    _remove_unfinished(_path(checkpoints, step).with_name(f"{step}{UNFINISHED[0]}"))
    before = find_latest_step(checkpoints)
    intact = "there is no earlier one" if before is None else f"the one of step {before} is intact"
    return UserError(
        f"the checkpoint of step {step} could not be written to {checkpoints.directory} "
        f"({stored.explain_error(error)}); {intact}. Make sure that the folder is writable and "
        "that there is space, then run the same command again"
    )


def _remove_unfinished(path: Path) -> None:
    """Remove what was written before the failure, because the disk may be full.

    TensorStore's threads continue for a moment after the first of them fails. If they take longer
    than this function waits, the next save removes the rest.
    """
    for _ in range(10):
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)
        if not path.exists():
            return
