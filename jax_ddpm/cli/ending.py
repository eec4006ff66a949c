"""How a command ends: its exit code, and one sentence instead of a traceback for a mistake."""

import io
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from jax.errors import JaxRuntimeError

from jax_ddpm.cli.library_messages import short_library_messages
from jax_ddpm.devices.platforms import describe_platform_problem
from jax_ddpm.devices.processes import leave_on_exit
from jax_ddpm.errors import Stopped, UserError, is_out_of_memory, one_line
from jax_ddpm.jobs.display import tell_last

NO_MEMORY = (
    "the device does not have enough memory: process fewer images at a time (--batch-size; in "
    "training --train.batch-size, --train.accumulate, --train.sample-batch-size or --train.remat "
    "nothing_saveable), see "
    "docs/scaling.md"
)


def exit_after(command: Callable[[], None]) -> NoReturn:
    """Call `command` and exit. A user's mistake gives a one-line error and exit code 1."""
    _write_any_name()
    with leave_on_exit(), _without_late_threads(), short_library_messages():
        _run(command)
    raise AssertionError("a command ends by exiting")


def _write_any_name() -> None:
    """Let file names that are no valid UTF-8 be printed, escaped, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(command: Callable[[], None]) -> NoReturn:
    try:
        command()
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # the reader of a table or help text, such as `head`, has closed it
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        sys.exit(one_line(f"error: {error.filename or 'a file'}: {error.strerror or error}"))
    except MemoryError as error:
        sys.exit(one_line(f"error: there is not enough memory ({error}): see docs/scaling.md"))
    except JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(f"error: {NO_MEMORY}")
    except (RuntimeError, AssertionError):  # what JAX raises if it cannot start a platform
        if (problem := describe_platform_problem()) is None:
            raise
        sys.exit(f"error: {problem}")
    except Stopped as stop:
        tell_last(str(stop))
        sys.exit(130 if stop.signum == signal.SIGINT else 0)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


@contextmanager
def _without_late_threads() -> Iterator[None]:
    """Silence TensorStore's threads that outlive a failed read or write."""
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed":
            before(found)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def suggest(*words: object, why: str = "") -> None:
    """Print the command that the user may want next, ready to paste, and `why`."""
    command, *rest = map(str, words)
    note = f"   # {why}" if why else ""
    print(f"Next: {command_name(command)} {shlex.join(rest)}{note}")


def command_name(command: str) -> str:
    """How the user starts `command`: the same way as they started this one."""
    door = Path(sys.argv[0])
    script = door.with_name(f"{command}.py")
    if door.parent.name == "scripts" and script.is_file():
        return f"python {script}"
    return f"python -m jax_ddpm {command}" if door.name == "__main__.py" else f"jax-ddpm {command}"
