"""A classifier of noisy images from a file of the user's own: FILE.py:FUNCTION."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jax_ddpm.errors import UserError
from jax_ddpm.process.guidance import LogProbFn


def load_classifier(place: str) -> LogProbFn:
    """The function of `place`, FILE.py:FUNCTION. The file is run, as Python's import does.

    Raises UserError if there is no such file or function, or the file cannot be run.
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not file or path.suffix != ".py" or not name:
        raise UserError(f"--classifier {place} must name a file and a function: FILE.py:FUNCTION")
    if not path.is_file():
        raise UserError(f"--classifier {place}: there is no file {path}")
    function = getattr(_run(path, place), name, None)
    if not callable(function):
        raise UserError(f"--classifier {place}: {path} has no function {name}")
    return function


def _run(path: Path, place: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"jax_ddpm_classifier_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"--classifier {place}: {_sentence(error)}") from error
    return module


def require_classifier(
    log_prob: LogProbFn, place: str, image_shape: tuple[int, int, int], dtype: Any
) -> None:
    """Raise UserError unless `log_prob(x_t, t, label)` gives one real number per image."""
    two = jnp.zeros(2, jnp.int32)
    wanted = "log_prob(x_t [b, h, w, c], t [b], label [b]) -> [b]"
    try:
        found = jax.eval_shape(log_prob, jnp.zeros((2, *image_shape), dtype), two, two)
    except Exception as error:  # whatever the user's function raises
        raise UserError(f"--classifier {place} is not {wanted}: {_sentence(error)}") from error
    fits = getattr(found, "shape", None) == (2,) and jnp.issubdtype(found.dtype, jnp.floating)
    if not fits:
        raise UserError(f"--classifier {place} is not {wanted}: for two images it gives {found}")


def _sentence(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else 'no more is known'}"
