"""Measure every network and everything else, one process per row, and write a page about it."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.figures import save_bars
from jax_ddpm.jobs.bench.networks import NETWORKS, NetworkName
from jax_ddpm.jobs.bench.page import format_page, list_ratios

BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
OTHERS = {
    "growth": ("growth",),
    "devices": ("devices",),
    "start": ("start",),
    "data": ("data",),
}


@dataclass(frozen=True)
class SuiteArgs:
    """Everything that docs/performance.md shows: JSON files, a figure and the page itself.

    What has a JSON file in the folder already is not measured again, so an interrupted suite goes
    on where it was, and a row is measured again once its file is removed.
    """

    folder: Path = Path("performance")
    """Where the JSON files, performance.png and performance.md go."""
    page: Path | None = None
    """A Markdown page, such as docs/performance.md: its part between the lines `<!-- tables -->`
    and `<!-- end of tables -->` is replaced. None: performance.md in the folder."""
    networks: tuple[NetworkName, ...] = tuple(NETWORKS)
    """Networks to measure."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the networks' convolutions and products."""
    rounds: int = 3
    """Number of times that each contestant is measured."""
    others: bool = True
    """Also measure growth, simulated devices, the start and the data."""


class Row(NamedTuple):
    """A file of the suite, and the words of the command that writes it."""

    name: str
    words: tuple[str, ...]


def bench_suite(args: SuiteArgs) -> Path:
    """Measure what is missing, then write the page and the figure. Returns the page.

    Raises UserError at the end if a row could not be measured.
    """
    rows = list_rows(args)
    page = args.page or args.folder / "performance.md"
    around = split_page(page) if args.page else ("", "")
    failed = [row.name for row in rows if not measure(row, args.folder)]
    if found := read_folder(args.folder):
        text = format_page(found).join(around)
        write_atomically(page, lambda temporary: temporary.write_text(text))
        save_bars(args.folder / "performance.png", list_ratios(found), "times the fastest PyTorch")
        print(f"Wrote {page}")
    if failed:
        raise UserError(f"these could not be measured (see above): {', '.join(failed)}")
    return page


def list_rows(args: SuiteArgs) -> list[Row]:
    """List what the suite measures, networks first."""
    rows = []
    for name in args.networks:
        common = ("--network", name, "--dtype", args.dtype, "--rounds", str(args.rounds))
        rows.append(Row(f"{name}_step", ("step", *common)))
        for batch, steps in ((1, 50), (16, 10)):  # seconds grow linearly with the steps
            words = "sampling", "--batch-size", str(batch), "--steps", str(steps), *common
            rows.append(Row(f"{name}_sampling_{batch}", words))
    return rows + [Row(name, words) for name, words in OTHERS.items() if args.others]


def measure(row: Row, folder: Path) -> bool:
    """Measure a row in a process of its own, unless its file is there. Says whether it is now."""
    out = folder / f"{row.name}.json"
    if out.is_file():
        print(f"{row.name}: measured already, in {out}", flush=True)
        return True
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{row.name}: measuring", flush=True)
    command = [sys.executable, "-m", "jax_ddpm", "bench", *row.words, "--out", str(out)]
    subprocess.run(command, check=False)
    return out.is_file()


def split_page(page: Path) -> tuple[str, str]:
    """Read what stands before and after the tables of a page. Raises UserError without a place."""
    text = page.read_text() if page.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise UserError(f"--page {page} has no lines {BEGIN} and {END}, between which tables go")
    return f"{before}{begin}\n\n", f"\n{end}{after}"


def read_folder(folder: Path) -> dict[str, Any]:
    """Read the JSON files of a suite, by the names of their rows."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
