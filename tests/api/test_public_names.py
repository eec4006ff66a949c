"""The names of `import jax_ddpm as jd`."""

import subprocess
import sys
from pathlib import Path

import pytest

import jax_ddpm as jd


def test_every_public_name_is_there():
    missing = [name for name in jd.__all__ if getattr(jd, name, None) is None]
    assert missing == []
    assert set(jd.__all__) <= set(dir(jd))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jax_ddpm' has no attribute 'ddmi'"):
        _ = jd.ddmi


def test_importing_the_package_loads_nothing_else():
    """Names load what they need when they are first used, so the import itself takes no time."""
    code = (
        "import sys, jax_ddpm as jd; assert 'jax' not in sys.modules and 'flax' not in sys.modules;"
        "jd.ddim; assert 'jax' in sys.modules and 'orbax' not in sys.modules"
    )
    folder = Path(jd.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)
