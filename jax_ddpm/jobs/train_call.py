"""What a call of train leaves for people: a note of its time and machine, and the report."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import jax

from jax_ddpm.devices.layout import count_devices, get_device_name
from jax_ddpm.devices.processes import is_main_process
from jax_ddpm.jobs.report import write_report
from jax_ddpm.jobs.train_setup import Job
from jax_ddpm.runs import checkpoint
from jax_ddpm.runs.calls import Call, append_call

PACKAGES = ("jax_ddpm", "jax", "jaxlib", "flax", "optax", "numpy")
NOTE = "the note of how long training took"  # what may fail


@contextmanager
def note_call(job: Job, step: int) -> Iterator[None]:
    """Append a line to the run's calls.jsonl when this context is left, however it is left."""
    start, began = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    try:
        yield
    finally:
        if is_main_process():
            with job.attempts.attempt(NOTE):
                last = checkpoint.find_latest_step(job.checkpoints) or step
                seconds = round(time.monotonic() - start, 1)
                call = Call(step, max(step, last), seconds, began, describe_environment(job))
                append_call(job.run.calls, call)


def write_final_report(job: Job) -> None:
    """Write the page that shows the run. A failure is said and ends nothing."""
    if is_main_process():
        job.guard()
        with job.attempts.attempt(job.run.report.name):
            write_report([job.run.folder], job.run.report, source=job.source)


def describe_environment(job: Job) -> dict[str, str]:
    """List versions, machine and devices, and the size of the network."""
    shapes = jax.eval_shape(job.parts.network.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    devices = f"{count_devices(job.layout.mode)} {jax.default_backend()}"
    return {
        "parameters": f"{count:,}",
        "devices": f"{devices} ({get_device_name()})",
        "parallel": job.layout.mode,
        **{name: find_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
    }


def find_version(package: str) -> str:
    """The version of a package, if it is installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
