"""Write and read one checkpoint with Orbax, with a checksum of every leaf."""

import errno
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from jax_ddpm.devices.layout import shapes_to_load
from jax_ddpm.devices.processes import finish_in_turn, max_over_processes
from jax_ddpm.errors import UserError, one_line
from jax_ddpm.files.untrusted import read_bounded, require_bounded, require_plain_tree
from jax_ddpm.optim.averages import Params
from jax_ddpm.runs.checksums import checksum, copy_array, is_whole, seal
from jax_ddpm.runs.formats import check_format
from jax_ddpm.training.state import TrainState

# Fields of the state that older checkpoints lack; they are then zeros.
LATER_FIELDS = {"loss_history", "skipped"}
DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO)
# Errors that do not mean that the checkpoint is damaged.
REFUSED = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)
DESCRIPTION = "_CHECKPOINT_METADATA"
MAX_TEXT = 2**26  # bytes of the documents beside the arrays; those of a network take kilobytes
UNCHECKED_FORMATS = (1, 2)  # without checksums


class Damaged(UserError):
    """A checkpoint that cannot be read, or differs from what was written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"the checkpoint {path} is damaged ({reason})")
        self.reason = reason


class Misnamed(Damaged):
    """A checkpoint that holds another step than its name says."""

    def __init__(self, path: Path, step: int | None) -> None:
        what = "another step" if step is None else f"step {step}"
        super().__init__(path, f"it holds {what}, so it was copied or renamed")


def write(path: Path, state: TrainState, about: dict[str, Any], loss: float | None) -> Any:
    """Start writing `state` to `path`, which must not exist. Returns an object to wait on.

    Its result() waits until the checkpoint is written. The buffers of `state` are no longer needed
    when this function returns. Raises whatever Orbax raises.
    """
    held = jax.tree.map(_without_empty, _fields_with_arrays(state))
    step = int(state.step)
    document = seal({**about, "step": step, "loss": loss, "leaves": _described(held)})
    if jax.default_backend() == "cpu":  # there, what Orbax takes for its copy may be no copy
        held = jax.tree.map(copy_array, held)
    with _orbax():
        return ocp.save_async(path, held, custom_metadata=document)


def read(path: Path, like: TrainState) -> TrainState:
    """Read the state in `path`, with the shapes, dtypes and devices of `like`.

    Raises Damaged, or UserError if the checkpoint belongs to another network or a newer version or
    reading it is not permitted.
    """
    expected = _fields_with_arrays(like)
    with agree_on_damage(path):
        leaves = _leaves_of(path, describe(path))
        there = {name.split("/")[0] for name in leaves}
        later = {name: expected.pop(name) for name in LATER_FIELDS & expected.keys() - there}
    found = _load(path, expected, leaves)
    if _step_in_name(path) not in (None, int(found["step"])):  # formats 1 and 2 show it only here
        raise Misnamed(path, int(found["step"]))
    return like.replace(**found, **jax.tree.map(_zeros, later))


def read_params(path: Path, like: Params) -> Params:
    """Read only the parameters of the state in `path`. Raises the errors that `read` does."""
    with agree_on_damage(path):
        leaves = _leaves_of(path, describe(path))
    leaves = {name: leaf for name, leaf in leaves.items() if name.split("/")[0] == "params"}
    return _load(path, {"params": like}, leaves)["params"]


def read_field(path: Path, name: str) -> Any:
    """Read one field of the state in `path`, of any network. Raises the errors that `read` does."""
    with agree_on_damage(path):
        leaves, tree = _leaves_of(path, describe(path)), _stored_tree(path)
        if name not in tree:
            raise Damaged(path, f"it has no {name}")
    leaves = {leaf: about for leaf, about in leaves.items() if leaf.split("/")[0] == name}
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), {name: tree[name]}
    )
    return _load(path, shapes_to_load(shapes), leaves)[name]


def verify(path: Path) -> None:
    """Check every array in `path`, of any network. Raises the errors that `read` does."""
    with agree_on_damage(path):
        leaves, tree = _leaves_of(path, describe(path)), _stored_tree(path)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    _load(path, shapes_to_load(shapes), leaves)


@contextmanager
def agree_on_damage(path: Path) -> Iterator[None]:
    """If one process raises Damaged, raise it in all, so that all try the same checkpoint next."""
    damaged = None
    try:
        yield
    except Damaged as error:
        damaged = error
    if max_over_processes(int(damaged is not None)):
        raise damaged or Damaged(path, "found by another process")


def describe(path: Path) -> dict[str, Any]:
    """Read the description of a checkpoint: `about` as given to `write`, and the loss.

    Raises Damaged, or UserError if it was written by a newer version.
    """
    _require_plain(path)
    try:  # ocp.metadata would also read a description of every array
        document = dict(json.loads(read_bounded(path / DESCRIPTION, MAX_TEXT))["custom_metadata"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if "leaves" not in document and document.get("format") in UNCHECKED_FORMATS:
        return document
    if not is_whole(document):
        raise Damaged(path, "the checksum of its description is wrong")
    check_format(document.get("format", 1), path)
    if not _is_well_formed(document):
        raise Damaged(path, "its description does not describe a checkpoint")
    _require_own_step(path, document)
    return document


def _require_plain(path: Path) -> None:
    """Raise Damaged for links and devices in a checkpoint, and for documents of absurd size.

    Orbax follows links, waits for pipes, and reads documents as a whole.
    """
    try:
        require_plain_tree(path)
        large = [file for file in path.rglob("*") if file.is_symlink() or _is_too_large(file)]
    except UserError as error:
        raise Damaged(path, explain_error(error)) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if large:
        what = "a link" if large[0].is_symlink() else "too large"
        raise Damaged(path, f"{large[0].relative_to(path)} is {what}")


def _is_too_large(file: Path) -> bool:
    is_document = file.name.startswith("_") or file.name in ("manifest.ocdbt", "metrics")
    is_document = is_document or file.parent.name == "array_metadatas"
    return is_document and file.is_file() and file.stat().st_size > MAX_TEXT


def _require_own_step(path: Path, document: dict[str, Any]) -> None:
    """Raise Misnamed if the state is not of the step in the name of its folder.

    Earlier versions did not write the step down, but its checksum tells.
    """
    named, leaf = _step_in_name(path), document.get("leaves", {}).get("step")
    if named is None:
        return
    if "step" in document:
        if document["step"] != named:
            raise Misnamed(path, document["step"])
    elif leaf is not None and leaf[2] != checksum(np.array(named, np.int32)).tolist():
        raise Misnamed(path, None)


def _step_in_name(path: Path) -> int | None:
    return int(path.name) if path.name.isascii() and path.name.isdigit() else None


def _num_bytes(like: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))


def _is_well_formed(document: dict[str, Any]) -> bool:
    """Whether loss and leaves have the right types; a valid seal does not prove that."""
    leaves, loss = document.get("leaves", {}), document.get("loss")
    if not isinstance(leaves, dict) or not (loss is None or type(loss) in (int, float)):
        return False
    if type(document.get("step", 0)) is not int:
        return False
    return all(
        isinstance(leaf, list) and len(leaf) == 3 and _is_shape(leaf[0]) for leaf in leaves.values()
    )


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int for size in value)


def read_loss(path: Path) -> float | None:
    """Read the loss that a checkpoint was saved with. Raises Damaged."""
    document = describe(path)
    if "leaves" in document:
        return document.get("loss")
    try:  # older formats may have it in a separate file
        return float(json.loads(read_bounded(path / "metrics" / "metrics", MAX_TEXT))["loss"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def explain_error(error: BaseException) -> str:
    """The message of `error` in at most 160 characters, without what libraries wrap around it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).split("[tensorstore_spec")[0].rsplit(": Error ", 1)[-1].split()
    known = re.search("|".join(map(os.strerror, (*DISK_ERRORS, *REFUSED))), str(error))
    if known:
        return known[0]
    kind = "" if isinstance(error, RuntimeError | ValueError) else f"{type(error).__name__} "
    return (kind + " ".join(text))[:160].strip() or type(error).__name__


def warn(message: str) -> None:
    """Print `message`, which may quote names from outside, as one line on stderr, if possible."""
    with suppress(OSError, ValueError):
        print(one_line(message), file=sys.stderr, flush=True)


def _orbax() -> ocp.Context:
    """Make Orbax's settings, with which it fails immediately if it cannot make a folder."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they only repeat what is raised
    directly = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    return ocp.Context(async_options=directly)


def _fields_with_arrays(state: TrainState) -> dict[str, Any]:
    """The fields of `state` that hold arrays; older checkpoints lack those that are not in use."""
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    return {name: value for name, value in values.items() if jax.tree.leaves(value)}


def _described(held: dict[str, Any]) -> dict[str, Any]:
    """The shape, dtype and checksum of each leaf, by name."""
    leaves = name_leaves(held)
    sums = jax.device_get({name: finish_in_turn(checksum(leaf)) for name, leaf in leaves.items()})
    return {
        name: [list(leaf.shape), str(leaf.dtype), [int(lane) for lane in sums[name]]]
        for name, leaf in leaves.items()
    }


def _leaves_of(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """The shape, dtype and checksum of each leaf, by name; in older formats, only the shape."""
    if "leaves" in document:
        return document["leaves"]
    tree = _stored_tree(path)
    return {name: [list(leaf.shape), None, None] for name, leaf in name_leaves(tree).items()}


def _stored_tree(path: Path) -> Any:
    """Read the tree of the arrays' shapes and dtypes in `path`."""
    try:
        with _orbax():
            return ocp.metadata(path).metadata
    except Exception as error:
        raise _unreadable(path, error) from error


def _load(path: Path, like: Any, leaves: dict[str, Any]) -> Any:
    """Load the arrays of `like` from `path`, and verify their checksums.

    Raises Damaged, or UserError if `path` has other shapes or reading it is not permitted.
    """
    _require_same_shapes(path, leaves, like)
    require_bounded(_num_bytes(like), path)
    with agree_on_damage(path):
        found = _as_stored(path, like, leaves)
    arrays = name_leaves(found)
    sums = jax.device_get({name: finish_in_turn(checksum(array)) for name, array in arrays.items()})
    with agree_on_damage(path):
        for name, array in arrays.items():
            _, dtype, lanes = leaves[name]
            if lanes is not None and (str(array.dtype) != dtype or sums[name].tolist() != lanes):
                raise Damaged(path, f"the checksum of {name} is wrong")
    return jax.tree.map(lambda name, leaf: _given(arrays.get(name), leaf), _names(like), like)


def _as_stored(path: Path, like: Any, leaves: dict[str, Any]) -> Any:
    """Load the arrays of `like` with the dtypes that they have in `path`; None for empty ones."""
    context = _orbax()
    context.pytree.loading.partial_load = True
    # Otherwise Orbax waits for all processes at the end, even if one of them has failed.
    context.multiprocessing.active_processes = {jax.process_index()}
    context.multiprocessing.primary_host = jax.process_index()

    def stored_as(name: str, leaf: Any) -> Any:
        if not np.prod(leaf.shape):
            return None
        dtype = leaf.dtype if leaves[name][1] in (None, str(leaf.dtype)) else leaves[name][1]
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=getattr(leaf, "sharding", None))

    try:
        with context:
            found = ocp.load(path, jax.tree.map(stored_as, _names(like), like))
    except Exception as error:
        raise _unreadable(path, error) from error
    if not all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found)):
        raise Damaged(path, "arrays are missing")  # Orbax returns their shapes instead
    return found


def _unreadable(path: Path, error: Exception) -> Exception:
    """Convert `error` to Damaged, or to another error if it does not prove damage."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return error
    reason = explain_error(error)
    if getattr(error, "errno", None) in REFUSED or reason in map(os.strerror, REFUSED):
        return UserError(
            f"the checkpoint {path} cannot be read ({reason}): make it readable, then run the same "
            "command again"
        )
    return Damaged(path, reason)


def _given(array: Any, like: Any) -> Any:
    if array is None:
        return _zeros(like)
    return array if array.dtype == like.dtype else array.astype(like.dtype)


def _zeros(like: Any) -> Any:
    return jnp.zeros(like.shape, like.dtype, device=getattr(like, "sharding", None))


def _without_empty(leaf: Any) -> Any:
    """Replace `leaf` by None if it has no elements, because Orbax refuses empty arrays."""
    return leaf if np.prod(leaf.shape) else None


def _names(tree: Any) -> Any:
    """Replace each leaf of `tree` by its name."""
    return jax.tree.unflatten(jax.tree.structure(tree), list(name_leaves(tree)))


def name_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by name, such as "conv_in/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _require_same_shapes(path: Path, leaves: dict[str, Any], like: Any) -> None:
    stored = {name: tuple(leaf[0]) for name, leaf in leaves.items()}
    expected = {name: leaf.shape for name, leaf in name_leaves(like).items() if np.prod(leaf.shape)}
    for name in expected | stored:
        if stored.get(name) != expected.get(name):
            raise UserError(
                f"checkpoint {path.name} in {path.parent} belongs to another network: {name} is "
                f"{_shape_of(stored.get(name))} there, {_shape_of(expected.get(name))} here"
            )


def _shape_of(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else f"of shape {shape}"
