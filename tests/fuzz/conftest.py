"""Few examples, always the same ones; FUZZ_EXAMPLES=10000 tries that many others."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.shared.mutations import EXAMPLES

settings.register_profile(
    "fuzz",
    max_examples=EXAMPLES or 6,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,  # mutations.limit_time notices a hang
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fuzz")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the files of a module's examples, one after the other."""
    return tmp_path_factory.mktemp("fuzz")
