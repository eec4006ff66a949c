"""What a job can do without: pictures and reports, whose errors end nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

from jax_ddpm.devices.processes import is_distributed
from jax_ddpm.errors import UserError, is_out_of_memory, one_line
from jax_ddpm.runs.stored import explain_error, warn


class Attempts:
    """Parts of a job that may fail. Each kind of failure is said once, and the job goes on."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}
        """What failed -> why, the last time."""

    @contextmanager
    def attempt(self, what: str, *, by_all: bool = False) -> Iterator[None]:
        """Go on after an error inside this context, saying that `what` failed.

        What several processes do together, `by_all`, may not fail for one of them.
        """
        try:
            yield
        except Exception as error:
            if by_all and is_distributed():
                raise
            reason = explain(error)
            if what not in self.failures:
                warn(one_line(f"{what} failed, and the job goes on: {reason}"))
            self.failures[what] = reason


def explain(error: Exception) -> str:
    """Why something failed, in words."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return "the device does not have enough memory"
    return explain_error(error)
