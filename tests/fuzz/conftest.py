"""Few examples, always the same, in every run; many others with FUZZ_EXAMPLES=10000."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.shared.mutations import EXAMPLES

settings.register_profile(
    "fuzz",
    max_examples=EXAMPLES or 10,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,  # a hang is seen by mutations.within
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fuzz")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the examples of a module write to, one after the other."""
    return tmp_path_factory.mktemp("fuzz")
