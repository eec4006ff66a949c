"""The rows of metrics.jsonl, which does not depend on whether a run was interrupted."""

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import explain, open_regular

MAX_LINE, MAX_VALUE = 10_000, sys.float_info.max


class Row(NamedTuple):
    """Means over the steps since the last row, after `step` steps. It holds no times.

    Means leave out skipped steps; if all steps were skipped, loss and grad_norm are NaN (null in
    the file). The fields after `skipped` are None, and not in the file, if they were not measured
    at this step.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    skipped: int = 0
    validation_loss: float | None = None
    """Loss of held-out images with the averaged weights."""
    validation_loss_raw: float | None = None
    """The same with the raw weights."""
    trained_loss: float | None = None
    """Loss of as many training images with the averaged weights and the same noise."""
    mse: float | None = None
    """The error's part of a hybrid loss."""
    vb: float | None = None
    """The bound's part of it, with its weight: the loss is the sum of both."""
    frechet: float | None = None
    """Frechet distance of images drawn with the averaged weights, as `jax-ddpm evaluate` has it."""
    kernel: float | None = None
    """Their kernel distance."""
    score: float | None = None
    """Their score."""


def read(path: Path) -> list[Row]:
    """Read all rows of the file; an empty list if it does not exist.

    Ignores a half-written last line. Raises UserError, naming the line, for any other bad line.
    """
    if not path.exists():
        return []
    rows: list[Row] = []
    with open_regular(path) as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE)
            if not line.endswith(b"\n") and len(line) < MAX_LINE:
                return rows
            try:
                rows.append(parse_row(line))
            except ValueError as error:
                raise UserError(
                    f"line {number} of {path} is not a row of metrics: {explain(error)}. Correct "
                    "or remove that line, then run the same command again"
                ) from error
    raise AssertionError("unreachable")


def encode_row(row: Row) -> bytes:
    """Encode `row` as one line of the file."""
    values = {name: value for name, value in row._asdict().items() if value is not None}
    finite = {name: None if math.isnan(v) else v for name, v in values.items()}
    return (json.dumps(finite) + "\n").encode()


def parse_row(line: bytes) -> Row:
    """Read one line of the file. Raises ValueError if it is not a row."""
    try:
        return _row(json.loads(line))
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(explain(error)) from error


def _row(values: Any) -> Row:
    known: dict[str, Any] = {
        name: math.nan if value is None else value for name, value in values.items()
    }
    row = Row(**known)
    values = [value for value in row if value is not None]
    numbers = all(type(value) in (int, float) for value in values)
    numbers = numbers and not any(abs(value) > MAX_VALUE for value in values)
    if not numbers or type(row.step) is not int or type(row.skipped) is not int:
        raise ValueError("one of its values is not a number")
    return row
