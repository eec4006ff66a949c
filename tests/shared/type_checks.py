"""Annotations of jax_ddpm are checked when a function is called, shapes and dtypes included.

To be imported before jax_ddpm is.
"""

from collections.abc import Iterator

import beartype
import jaxtyping
import pytest

# As PEP 484 has it, an int is also a float.
check_types = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))

ROOMS = ["process", "samplers", "optim"]

jaxtyping.install_import_hook([f"jax_ddpm.{room}" for room in ROOMS], f"{__name__}.check_types")


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Types are not checked, as for users: for tests of what the library itself refuses."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
