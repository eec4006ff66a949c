"""metrics.jsonl, which says the same for a run that was interrupted as for one that was not."""

import json
import math
from pathlib import Path
from typing import NamedTuple

from jax_ddpm.files import write_atomically


class Row(NamedTuple):
    """The means over the steps since the last row, at `step` finished steps. No clock: see above.

    Skipped steps are left out; where all were, loss and grad_norm are NaN, in the file null.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    skipped: int = 0


def append(path: Path, row: Row) -> None:
    """Add one line to the file."""
    with path.open("a") as file:
        file.write(_line(row))


def read(path: Path) -> list[Row]:
    """Every whole row of the file, if it is there; a half-written last line is left out."""
    if not path.exists():
        return []
    return [
        _row(json.loads(line)) for line in path.read_text().splitlines(True) if line.endswith("\n")
    ]


def keep_until(path: Path, step: int) -> None:
    """Drop the rows after `step`, which is where training goes on."""
    lines = [_line(row) for row in read(path) if row.step <= step]
    write_atomically(path, lambda temporary: temporary.write_text("".join(lines)))


def _line(row: Row) -> str:
    values = row._asdict().items()
    return json.dumps({name: None if math.isnan(value) else value for name, value in values}) + "\n"


def _row(values: dict[str, float | None]) -> Row:
    known = {name: math.nan if value is None else value for name, value in values.items()}
    return Row(**known)  # type: ignore[arg-type]
