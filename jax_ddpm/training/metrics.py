"""metrics.jsonl, which says the same for a run that was interrupted as for one that was not."""

import json
from pathlib import Path
from typing import NamedTuple

from jax_ddpm.files import write_atomically


class Row(NamedTuple):
    """The mean over the steps since the last row, at `step` finished steps. No clock: see above."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float


def append(path: Path, row: Row) -> None:
    """Add one line to the file."""
    with path.open("a") as file:
        file.write(json.dumps(row._asdict()) + "\n")


def read(path: Path) -> list[Row]:
    """Every whole row of the file, if it is there; a half-written last line is left out."""
    if not path.exists():
        return []
    return [
        Row(**json.loads(line)) for line in path.read_text().splitlines(True) if line.endswith("\n")
    ]


def keep_until(path: Path, step: int) -> None:
    """Drop the rows after `step`, which is where training goes on."""
    lines = [json.dumps(row._asdict()) + "\n" for row in read(path) if row.step <= step]
    write_atomically(path, lambda temporary: temporary.write_text("".join(lines)))
