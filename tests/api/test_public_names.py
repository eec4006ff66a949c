"""The public names of `jax_ddpm`."""

import subprocess
import sys
from pathlib import Path

import pytest

import jax_ddpm as jd


def test_every_public_name_exists():
    missing = [name for name in jd.__all__ if getattr(jd, name, None) is None]
    assert missing == []
    assert set(jd.__all__) <= set(dir(jd))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jax_ddpm' has no attribute 'ddmi'"):
        _ = jd.ddmi


def test_importing_the_package_loads_nothing_else():
    """A name loads what it needs when it is first used, so the import itself is fast."""
    code = (
        "import sys, jax_ddpm as jd; assert 'jax' not in sys.modules and 'flax' not in sys.modules;"
        "jd.ddim; assert 'jax' in sys.modules and 'orbax' not in sys.modules"
    )
    folder = Path(jd.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)
