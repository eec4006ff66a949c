"""A short run of the harness; docs/reliability.md has the figures of long ones."""

import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("kill_harness.py")


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_left_alone():
    """In a process of its own, which no device has been touched by, and with compiled programs of
    its own, for a kill may leave half of one."""
    found = subprocess.run(
        [sys.executable, HARNESS, "--kills", "4", "--seed", "7"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    assert "4 kills in all" in found.stdout
    assert "every run ended with the same bits" in found.stdout
