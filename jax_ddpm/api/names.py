"""Messages that name arguments as Python has them, not as flags of the command line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from jax_ddpm.errors import UserError

FLAG = re.compile(r"--(?:no-)?(?:\w+\.)?([a-z][a-z0-9-]*)")


def to_arguments(message: str) -> str:
    """Replace flags in `message`: `--train.batch-size` becomes `batch_size`."""
    return FLAG.sub(lambda flag: flag[1].replace("-", "_"), message)


@contextmanager
def name_arguments() -> Iterator[None]:
    """A UserError raised inside names arguments instead of flags."""
    try:
        yield
    except UserError as error:
        error.args = (to_arguments(str(error)),)
        raise
