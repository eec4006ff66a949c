"""Programs that show how training goes, behind one small protocol.

A logger may fail, and training goes on without it. metrics.jsonl alone decides what a run resumes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from jax_ddpm.config.train import NO_LOGGER, LoggerName
from jax_ddpm.errors import UserError
from jax_ddpm.runs.folder import Run, to_dict
from jax_ddpm.runs.loggers.mlflow import MLflow
from jax_ddpm.runs.loggers.tensorboard import Board
from jax_ddpm.runs.loggers.wandb import WeightsAndBiases


class Logger(Protocol):
    """What shows settings, curves and images. Only the first of several processes has any."""

    title: str
    """What fails if it fails, as the beginning of a sentence."""

    def begin(self, step: int, settings: Mapping[str, Any]) -> None:
        """Begin after `step`, with the run's settings. Steps that were logged before stay single.

        Called once, before anything else.
        """

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a value to each of several curves."""

    def add_image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Show the image `pixels` (uint8 [h, w, c])."""

    def close(self) -> None:
        """Finish writing. Also called if `begin` was not, or failed."""


LOGGERS: dict[LoggerName, Callable[[Run], Logger]] = {
    "tensorboard": lambda run: Board(run.tensorboard),
    "wandb": lambda run: WeightsAndBiases(run.folder),
    "mlflow": lambda run: MLflow(run.folder),
}


@contextmanager
def open_loggers(run: Run) -> Iterator[tuple[Logger, ...]]:
    """Open the loggers of a run until this context is left; they write nothing before they begin.

    Raises UserError for one that is asked for but not installed.
    """
    with ExitStack() as stack:
        names = choose_loggers(run.config.train.logger)
        yield tuple(stack.enter_context(closing(LOGGERS[name](run))) for name in names)


def choose_loggers(names: tuple[LoggerName, ...] | None) -> tuple[LoggerName, ...]:
    """The loggers to use: `names`, or if that is None, TensorBoard if it is installed."""
    if names is None:
        return ("tensorboard",) if is_installed("tensorboard") else ()
    for name in names:
        if name != NO_LOGGER and not is_installed(name):
            raise UserError(
                f"--train.logger {name}: {name} is not installed: install it with "
                f"pip install 'jax_ddpm[{name}]', or leave it out"
            )
    return tuple(name for name in names if name != NO_LOGGER)


def is_installed(package: str) -> bool:
    """Whether a package can be imported. A folder of that name, as W&B makes, is none."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def flatten_settings(run: Run) -> dict[str, Any]:
    """The run's settings under their dotted names."""
    return dict(_flatten(to_dict(run.config), ""))


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
