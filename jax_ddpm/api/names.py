"""Rewrite error messages for Python users: arguments instead of command-line flags."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from jax_ddpm.config.sample import SampleConfig, describe_low_start
from jax_ddpm.errors import UserError

FLAG = re.compile(r"--(?:no-)?(?:\w+\.)?([a-z][a-z0-9-]*)")


def to_arguments(message: str) -> str:
    """Replace flags in `message`: `--train.batch-size` becomes `batch_size`."""
    return FLAG.sub(lambda flag: flag[1].replace("-", "_"), message)


def warn_of_low_start(sample: SampleConfig, num_timesteps: int) -> None:
    """Warn the caller's caller if sampling starts far below pure noise."""
    if low := describe_low_start(sample, num_timesteps):
        warnings.warn(to_arguments(low), stacklevel=3)


@contextmanager
def name_arguments() -> Iterator[None]:
    """In a UserError raised inside, replace flags by arguments."""
    try:
        yield
    except UserError as error:
        error.args = (to_arguments(str(error)),)
        raise
