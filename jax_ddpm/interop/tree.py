"""List the tensors in a file of nested mappings and lists by their paths."""

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jax_ddpm.errors import UserError

WEIGHTS = ("average", "raw")  # of a trainer
if TYPE_CHECKING:
    WeightsName = str
else:
    WeightsName = Literal[WEIGHTS]

MAX_DEPTH = 16  # mappings and lists inside each other
COUNTERS = {"initted", "step", "global_step", "num_updates"}  # vectors of one number in old files
# TensorFlow's endings of the moving average and of the optimiser's state.
TF_AVERAGE = "/ExponentialMovingAverage"
TF_SLOTS = ("/Adam", "/Adam_1", "beta1_power", "beta2_power")

Tensors = dict[str, np.ndarray]


def flatten(given: Any, buffers: Collection[str] = ()) -> Tensors:
    """List the arrays in nested mappings and lists by their dotted paths.

    Leaves out single numbers, `buffers`, and the state of TensorFlow's optimiser. Raises UserError
    for two arrays of the same path and for endless nesting.
    """
    leaves: Tensors = {}
    for name, value in _walk(_name_average(given), "", 0):
        array = np.asarray(value)
        if array.ndim == 0 or is_buffer(name, array, buffers):
            continue
        if name.endswith(TF_AVERAGE):
            name = f"{TF_AVERAGE[1:]}.{name.removesuffix(TF_AVERAGE)}"
        if name in leaves:
            raise UserError(f"two tensors are called {name}")
        leaves[name] = array
    return leaves


def _walk(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > MAX_DEPTH:
        raise UserError("it nests mappings or lists endlessly: it is not a state dict")
    if hasattr(value, "shape"):
        yield path, value
        return
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, inner in items:
        yield from _walk(inner, f"{path}.{key}" if path else str(key), depth + 1)


def _name_average(given: Any) -> Any:
    """Name the average in ermongroup/ddim's list: weights, optimiser, epoch, step, average."""
    if isinstance(given, list | tuple):
        given = dict(enumerate(given))
    keys = {str(key) for key in given} if isinstance(given, Mapping) else set()
    if "4" in keys and keys <= set("01234"):
        return {"ema" if str(key) == "4" else key: value for key, value in given.items()}
    return given


def is_buffer(name: str, array: np.ndarray, buffers: Collection[str]) -> bool:
    """Whether `name` is a counter, part of TensorFlow's optimiser, or one of `buffers`."""
    last = name.rpartition(".")[2]
    if (last in COUNTERS and array.size == 1) or name.endswith(TF_SLOTS):
        return True
    return any(name == buffer or name.endswith(f".{buffer}") for buffer in buffers)


def find_tensor(given: Any, name: str) -> Any | None:
    """Find the tensor called `name`, with any prefix and at any depth; None if there is none."""
    walk = _walk(given, "", 0)
    return next((value for key, value in walk if key == name or key.endswith(f".{name}")), None)
