"""Runs both frameworks on the CPU, allows float64, and prints the parity table at the end."""

import functools
import os
from dataclasses import asdict

import tests.shared.quick_compilation  # it sets XLA_FLAGS
import tests.shared.type_checks  # noqa: F401 - before jax_ddpm

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
import torch

from jax_ddpm.interop import network
from parity_tests.comparing import Comparison, Recorder

jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="session", autouse=True)
def _torch_threads():
    torch.set_num_threads(1)  # the networks are tiny: threads would only wait for each other


@pytest.fixture(scope="session", autouse=True)
def _shapes_once():
    """Trace each network once: it takes a second, and most tests share a few networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "parameter_shapes", functools.cache(network.parameter_shapes))
        yield


@pytest.fixture(autouse=True)
def _torch_seed():
    """PyTorch's random numbers in a test do not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(params=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture
def compare(request):
    """compare(what, ours, theirs, dtype): require the tolerance of `what`, record the gap."""
    return Recorder(request.config.stash.setdefault(TABLE, {}), theirs=request.node.module.THEIRS)


TABLE = pytest.StashKey[dict[tuple[str, str], Comparison]]()


def pytest_sessionfinish(session):
    """A test process passes its part of the table to the process that prints it."""
    if hasattr(session.config, "workeroutput"):
        table = session.config.stash.get(TABLE, {})
        session.config.workeroutput["parity"] = [(*key, asdict(row)) for key, row in table.items()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    table = node.config.stash.setdefault(TABLE, {})
    for what, theirs, row in getattr(node, "workeroutput", {}).get("parity", []):
        table.setdefault((what, theirs), Comparison()).add(Comparison(**row))


def pytest_terminal_summary(terminalreporter, config):
    table = config.stash.get(TABLE, {})
    if not table:
        return
    terminalreporter.section("parity: largest difference, relative to the largest entry")
    line = "{:<34} {:<22} {:>8} {:>10} {:>10} {:>10} {:>10}"
    head = ("what", "against", "arrays", "float64", "tolerance", "float32", "tolerance")
    terminalreporter.write_line(line.format(*head))
    for (what, theirs), row in table.items():
        terminalreporter.write_line(line.format(what, theirs, row.arrays, *row.cells()))
