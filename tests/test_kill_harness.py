"""Short runs of the harnesses; docs/reliability.md has the results of long ones."""

import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("kill_harness.py")
SIGNALS = Path(__file__).with_name("signal_harness.py")


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits():
    """In a process that has touched no device, with its own folder of compiled programs."""
    command = [sys.executable, HARNESS, "--kills", "4", "--seed", "7"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    assert "4 kills in all" in found.stdout
    assert "every run ended with the same bits" in found.stdout


@pytest.mark.slow
def test_a_run_that_is_stopped_by_signals_under_pipes_ends_with_the_same_bits():
    command = [sys.executable, SIGNALS, "--moments", "5", "--steps", "48", "--seed", "7"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    assert "5 signals in all" in found.stdout
    assert "no step was lost" in found.stdout
