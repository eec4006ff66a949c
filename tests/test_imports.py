"""Importing the library, or starting a command, does not load what few commands need."""

import json
import subprocess
import sys

import pytest

IMPORT_ALL = """
import json, pkgutil, sys
from importlib import import_module
import jax_ddpm

modules = [module.name for module in pkgutil.walk_packages(jax_ddpm.__path__, "jax_ddpm.")]
chosen = [name for name in modules if not name.startswith("jax_ddpm.parity.")]
for name in [*chosen, "jax_ddpm.parity.report", "jax_ddpm.parity.speed"]:
    if name != "jax_ddpm.__main__":
        import_module(name)
print(json.dumps([len(chosen), sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.fixture(scope="module")
def loaded():
    """The packages that are loaded once every module except parity's has been imported."""
    command = [sys.executable, "-c", IMPORT_ALL]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, packages = json.loads(done.stdout)
    assert count > 80 and {"jax", "flax", "jax_ddpm"} <= set(packages)
    return packages


@pytest.mark.parametrize(
    "package",
    ["torch", "diffusers", "tensorflow", "tensorflow_datasets", "matplotlib", "grain", "fontTools"],
)
def test_no_module_loads_what_few_commands_need(loaded, package):
    assert package not in loaded


def test_the_library_loads_little_at_first():
    code = "import jax_ddpm, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in done.stdout.split()}
    assert "jax_ddpm" in packages
    assert not packages & {
        "jax",
        "flax",
        "numpy",
        "PIL",
        "orbax",
        "grain",
        "tyro",
        "tensorboardX",
        "safetensors",
    }
