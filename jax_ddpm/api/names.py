"""Error messages that name arguments as Python has them, not as flags of the command line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from jax_ddpm.errors import UserError

FLAG = re.compile(r"--(?:no-)?(?:\w+\.)?([a-z][a-z0-9-]*)")


@contextmanager
def name_arguments() -> Iterator[None]:
    """In the message of a UserError, `--train.batch-size` becomes `batch_size`."""
    try:
        yield
    except UserError as error:
        error.args = (FLAG.sub(lambda flag: flag[1].replace("-", "_"), str(error)),)
        raise
