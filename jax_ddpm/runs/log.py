"""The log of a training job: it notices if rows of metrics.jsonl are lost or changed."""

import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import open_to_append, report_disk_errors, write_atomically
from jax_ddpm.files.untrusted import open_regular
from jax_ddpm.runs import metrics
from jax_ddpm.runs.metrics import MAX_LINE, Row, encode_row, parse_row
from jax_ddpm.runs.recovery import find_newest, read_description, warn_once

MAX_BYTES = 2**30  # about five million rows
KEPT = ".damaged"  # suffix of a file with lost or changed rows, as it was found


class Written(NamedTuple):
    """What a checkpoint remembers of the rows up to its step."""

    rows: int
    checksum: int
    """CRC-32 of their lines."""


class Found(NamedTuple):
    """What is in the file."""

    lines: tuple[bytes, ...] = ()
    """The complete lines that are rows up to the step asked for."""
    unreadable: int = 0
    """How many other complete lines are no rows."""


@dataclass
class Log:
    """The rows of a run, in memory and in a file."""

    path: Path
    lines: list[bytes] = field(default_factory=list)

    @property
    def written(self) -> Written:
        """What a checkpoint saved now should remember."""
        return count_lines(self.lines)

    def append(self, row: Row) -> None:
        """Append `row` to the file as one line. Raises UserError if it cannot be written.

        If the file was removed or changed meanwhile, all rows are written again.
        """
        line, before = encode_row(row), sum(map(len, self.lines))
        if (self.path.stat().st_size if self.path.is_file() else 0) == before:
            with report_disk_errors(self.path), open_to_append(self.path) as file:
                file.write(line)
        else:
            warn_once(f"{self.path} was removed or changed while training: it is written again.")
            self._write([*self.lines, line])
        self.lines.append(line)

    def resume(self, step: int, written: Written | None) -> None:
        """Continue after `step`: drop later rows, and warn if earlier ones differ from `written`.

        The file as it was found is then kept beside the new one.
        """
        found = read_lines(self.path, step)
        if loss := describe_loss(self.path, found, step, written):
            kept = self.path.with_name(self.path.name + KEPT)
            if self.path.is_file():
                write_atomically(kept, lambda path: shutil.copyfile(self.path, path))
                loss += f" The file as it was found is {kept}."
            warn_once(loss)
        self.lines = list(found.lines)
        self._write(self.lines)

    def _write(self, lines: list[bytes]) -> None:
        write_atomically(self.path, lambda path: path.write_bytes(b"".join(lines)))


def count_lines(lines: list[bytes] | tuple[bytes, ...]) -> Written:
    """Count `lines`, and compute their checksum."""
    return Written(len(lines), zlib.crc32(b"".join(lines)))


def read_lines(path: Path, step: int) -> Found:
    """Read the rows up to `step` from the file, and count the lines that are no rows.

    Raises UserError for a file far larger than any log.
    """
    if not path.exists():
        return Found()
    if path.stat().st_size > MAX_BYTES:
        raise UserError(
            f"{path} has more than {MAX_BYTES:,} bytes, so it is hardly the log of a run: move it "
            "away, then run the same command again to continue without its rows"
        )
    lines, unreadable = list[bytes](), 0
    with open_regular(path) as file:
        while line := file.readline(MAX_LINE):
            if not line.endswith(b"\n") and len(line) < MAX_LINE:
                break  # half-written
            try:
                if parse_row(line).step <= step:
                    lines.append(line)
            except ValueError:
                unreadable += 1
    return Found(tuple(lines), unreadable)


def describe_loss(path: Path, found: Found, step: int, written: Written | None) -> str | None:
    """Say which rows up to `step` are lost or changed; None if all are as they were written.

    `written` is None for checkpoints of earlier versions.
    """
    there = len(found.lines)
    if written is not None and there < written.rows:
        return (
            f"{path} has only {there} of the {written.rows} rows up to step {step}: the others are "
            "lost."
        )
    if written is not None and count_lines(found.lines) != written:
        return f"{path} no longer holds the rows that were written up to step {step}."
    if found.unreadable:
        return f"{path} has {found.unreadable} lines that are no rows: they are left out."
    return None


def read_rows(path: Path, checkpoints: Path) -> list[Row]:
    """Read all rows; warn if they are not those that the newest of `checkpoints` knows.

    Raises UserError, naming the line, for one that is no row.
    """
    rows, step = metrics.read(path), find_newest(checkpoints)
    about = read_description(checkpoints / str(step)) or {}
    written = written_from_json(about.get("metrics"))
    if loss := describe_loss(path, read_lines(path, step), step, written):
        warn_once(loss)
    return rows


def written_from_json(values: Any) -> Written | None:
    """Convert what a checkpoint holds back to Written; None if it holds nothing of that kind."""
    try:
        found = Written(**values)
    except TypeError:
        return None
    return found if type(found.rows) is type(found.checksum) is int else None
