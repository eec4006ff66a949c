"""The calls of train that made a run: which steps each took, how long, and on what machine.

These lines are for people. Nothing that is computed depends on them.
"""

import json
from pathlib import Path
from typing import NamedTuple

from jax_ddpm.files.atomic import open_to_append, report_disk_errors
from jax_ddpm.files.untrusted import open_regular
from jax_ddpm.runs.metrics import MAX_LINE

MAX_CALLS = 10_000


class Call(NamedTuple):
    """One call of train."""

    first_step: int
    """The step after which it began."""
    last_step: int
    """The last step that it saved."""
    seconds: float
    """The time in which it took and recorded these steps, compilation and pictures included."""
    began: str
    """Date and time, in UTC."""
    environment: dict[str, str]
    """Versions, devices and the like, by name."""


def append_call(path: Path, call: Call) -> None:
    """Append `call` to the file as one line. Raises UserError if it cannot be written."""
    line = json.dumps(call._asdict()) + "\n"
    with report_disk_errors(path), open_to_append(path) as file:
        file.write(line.encode())


def read_calls(path: Path) -> list[Call]:
    """Read the calls in the file, without the lines that are none; [] if there is no file."""
    if not path.is_file():
        return []
    with open_regular(path) as file:
        lines = [file.readline(MAX_LINE) for _ in range(MAX_CALLS)]
    found = (_parse(line) for line in lines if line)
    return [call for call in found if call is not None]


def _parse(line: bytes) -> Call | None:
    try:
        call = Call(**json.loads(line))
        numbers = (call.first_step, call.last_step, call.seconds)
        environment = {str(k): str(v) for k, v in call.environment.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    plain = all(type(number) in (int, float) and 0 <= number < 2**53 for number in numbers)
    return call._replace(began=str(call.began), environment=environment) if plain else None
