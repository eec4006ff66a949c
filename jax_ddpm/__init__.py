"""Denoising diffusion probabilistic models in functional JAX/Flax.

The customary import is `import jax_ddpm as jd`. Start with `jd.Diffusion`, `jd.fit` and
`jd.load_run`. Below them, everything is pure functions of arrays.

`__init__.pyi` lists the public names, for this module as well as for editors and type checkers.
Each name is imported when it is first used, so `import jax_ddpm` itself takes no time.
"""

import os
import sys
from functools import cache
from typing import Any


@cache
def _modules_of_names() -> dict[str, str]:
    """The module of each public name, read from the imports in `__init__.pyi`."""
    import ast
    from pathlib import Path

    tree = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def _find_version() -> str:
    """The version of the installed package, or else of this source tree."""
    import tomllib
    from importlib import metadata
    from pathlib import Path

    try:
        return metadata.version("jax_ddpm")
    except metadata.PackageNotFoundError:
        project = Path(__file__).parents[1] / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _find_version()
    if name == "__all__":
        return sorted(_modules_of_names())
    if name not in _modules_of_names():
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message, name=name, obj=sys.modules[__name__])
    if os.name != "posix":
        from jax_ddpm.errors import SYSTEMS

        raise ImportError(SYSTEMS)
    import importlib

    value = getattr(importlib.import_module(_modules_of_names()[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_modules_of_names()})
