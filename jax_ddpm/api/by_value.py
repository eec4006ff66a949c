"""Programs that are compared by value, so that what is asked for twice is compiled once.

`ddim()` called twice makes two samplers that compute the same. They are functions, which Python
compares by identity, so jit would compile a program for each.
"""

from collections.abc import Callable, Hashable
from functools import partial
from types import FunctionType
from typing import Any

import jax
import numpy as np


def run_compiled(program: Callable[..., Any], *args: Any) -> Any:
    """`program(*args)`, compiled once for all programs of equal value and arguments of one shape.

    `program` is a function of this package; what it closes over is part of its value.
    """
    return _run(ByValue(program), *args)


class ByValue:
    """A value that jit can take as a static argument; equal to others of the same `identify`."""

    def __init__(self, value: Any) -> None:
        self.value = value  # keeps alive the objects that the key knows by their id
        self._key = identify(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByValue) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@partial(jax.jit, static_argnums=0)
def _run(program: ByValue, *args: Any) -> Any:
    return program.value(*args)


def identify(value: Any) -> Hashable:
    """A key that is equal for two pytrees only if the same program computes with both.

    Arrays count by their content and functions of this package by what they close over. Functions
    of the user, who may redefine what they refer to, and traced arrays count by identity.
    """
    leaves, treedef = jax.tree.flatten(value)
    return treedef, tuple(map(_identify_leaf, leaves))


def _identify_leaf(leaf: Any) -> Hashable:
    while _is_written_in(leaf, "jaxtyping"):  # a check of annotations is around it
        leaf = leaf.__wrapped__
    if _is_written_in(leaf, "jax_ddpm"):
        cells = [cell.cell_contents for cell in leaf.__closure__ or ()]
        return leaf.__code__, identify((cells, leaf.__defaults__, leaf.__kwdefaults__))
    if isinstance(leaf, np.ndarray | jax.Array) and not isinstance(leaf, jax.core.Tracer):
        array = np.asarray(leaf)
        return array.shape, array.dtype, array.tobytes()
    if isinstance(leaf, Hashable) and not isinstance(leaf, jax.core.Tracer):
        return type(leaf), leaf
    return id(leaf)


def _is_written_in(value: Any, package: str) -> bool:
    """Whether `value` is a function of `package`, whatever decorators say about its module."""
    if not isinstance(value, FunctionType):
        return False
    return value.__globals__.get("__name__", "").partition(".")[0] == package
