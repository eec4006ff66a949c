"""Load a function from the user's own file: FILE.py:FUNCTION."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax_ddpm.errors import UserError


def load_function(place: str, flag: str) -> Callable[..., Any]:
    """Load the function that `place`, FILE.py:FUNCTION, names. Executes the file, as `import` does.

    Raises UserError, naming `flag`, if there is no such file or function, or if executing the file
    fails.
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not file or path.suffix != ".py" or not name:
        raise UserError(f"{flag} {place} must name a file and a function: FILE.py:FUNCTION")
    if not path.is_file():
        raise UserError(f"{flag} {place}: there is no file {path}")
    function = getattr(_execute(path, place, flag), name, None)
    if not callable(function):
        raise UserError(f"{flag} {place}: {path} has no function {name}")
    return function


def _execute(path: Path, place: str, flag: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"jax_ddpm_own_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"{flag} {place}: {summarize(error)}") from error
    return module


def summarize(error: Exception) -> str:
    """The type of `error` and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
