"""Check the annotations of jax_ddpm at run time, shapes and dtypes included.

Import this before jax_ddpm.
"""

from collections.abc import Callable, Iterator
from typing import Any

import beartype
import jaxtyping
import pytest
from beartype.roar import BeartypeDecorHintPepUnsupportedException

# As in PEP 484, an int is also a float.
check_function = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def check_types(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the arguments of `function` and what it returns.

    Fields of dataclasses are left alone: JAX puts placeholders into pytrees, and configurations
    have checks of their own, which tests have to reach. So are the few functions with types that
    beartype does not know, such as a generic NamedTuple.
    """
    if function.__name__ == "__init__":
        return function
    try:
        return check_function(function)
    except BeartypeDecorHintPepUnsupportedException:
        return function


jaxtyping.install_import_hook("jax_ddpm", f"{__name__}.check_types")


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Leave types unchecked, as for users, to test what the library itself refuses."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
