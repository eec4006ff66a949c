"""File systems that are full, have no inodes left or are read-only, and a clock that is set back.

    pytest tests/jobs/test_disks.py -m slow -n 0 -s

The file systems are real ones in memory, which only root can mount.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jax_ddpm.errors import Stopped, UserError
from jax_ddpm.jobs import train as loop
from tests.shared.compared_runs import assert_same_run, raise_at_batch
from tests.shared.mutations import require_clear

pytestmark = pytest.mark.slow
LARGE = "size=64m,nr_inodes=10k"
YEARS = 10 * 365 * 24 * 3600  # in seconds


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a file system with the options that are given, or change those of the one mounted."""
    folder = tmp_path / "disk"

    def call(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    def change(options: str) -> Path:
        if folder.is_mount():
            call("mount", "-o", f"remount,{options}", str(folder))
        else:
            call("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
        return folder

    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    folder.mkdir()
    try:
        change(LARGE)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets nobody mount a file system")
    call("umount", str(folder))
    yield change
    call("umount", "-l", str(folder))


def refuse(config) -> str:
    """Train, and return the one sentence that ends it."""
    with pytest.raises(UserError) as caught:
        loop.train(config)
    require_clear(caught.value)
    print(f"  {caught.value}")
    return str(caught.value)


@pytest.fixture(scope="module")
def needs(trained_run) -> tuple[int, int]:
    """Bytes and inodes that a finished run takes on a disk with pages of 4 KiB."""
    found = list(trained_run.rglob("*"))
    files = [path for path in found if path.is_file()]
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in files), len(found) + 1


def fail_and_continue(folder, mount, make_config, trained_run) -> None:
    """Train on a disk that is too small, and again once it is large."""
    config = make_config(folder / "run")
    assert "No space left on device" in refuse(config)
    mount(LARGE)
    loop.train(config)
    assert_same_run(config.run, trained_run)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
def test_a_full_disk(mount, needs, make_config, trained_run, fraction):
    folder = mount(f"size={max(4096, int(fraction * needs[0]))},nr_inodes=10k")
    fail_and_continue(folder, mount, make_config, trained_run)


@pytest.mark.parametrize("fraction", [0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9])
def test_a_disk_without_inodes(mount, needs, make_config, trained_run, fraction):
    folder = mount(f"size=64m,nr_inodes={max(2, int(fraction * needs[1]))}")
    fail_and_continue(folder, mount, make_config, trained_run)


@pytest.mark.parametrize("steps", [0, 4, 7])
def test_a_disk_that_is_read_only(mount, make_config, trained_run, steps):
    """From the start, or when a run that has made some steps is continued."""
    config = make_config(mount(LARGE) / "run")
    if steps:
        with pytest.raises(Stopped):
            loop.train(make_config(config.run, train={"max_steps": steps}))
    mount("ro")
    assert "Read-only file system" in refuse(config)
    mount("rw")
    loop.train(config)
    assert_same_run(config.run, trained_run)


@pytest.mark.parametrize("batch", [0, 5])
def test_a_clock_that_is_set_back(make_config, trained_run, tmp_path, monkeypatch, batch):
    """By ten years while the run trains, and again by as much before it is continued."""
    real, back = time.time, [0]
    monkeypatch.setattr(time, "time", lambda: real() - back[0] * YEARS)
    monkeypatch.setattr(time, "time_ns", lambda: int((real() - back[0] * YEARS) * 1e9))

    def set_back() -> None:
        back[0] += 1

    config = make_config(tmp_path / "run")
    with monkeypatch.context() as patch:
        raise_at_batch(patch, batch, set_back)
        with pytest.raises(Stopped):
            loop.train(make_config(config.run, train={"max_steps": 7}))
    set_back()
    loop.train(config)
    assert back == [2]
    assert_same_run(config.run, trained_run)
