"""`jax-ddpm report`: one page that shows a run, or several side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from jax_ddpm.cli.help import Help
from jax_ddpm.cli.parsing import Parsed, parse

HELP = Help(
    usage="jax-ddpm report RUN [RUN ...] [FLAGS]",
    summary="Write one HTML page that shows a run: its curves, its samples over time, how they "
    "emerge from noise, its data, settings, evaluation and machine, and the commands that come "
    "next. The page holds everything itself, so it can be sent or archived. Training writes it at "
    "the end of every run. Several runs are shown side by side, with the settings that differ.",
    examples=(
        ("jax-ddpm report runs/fashion-cpu", "writes report.html in that folder"),
        ("jax-ddpm report runs/a runs/b", "both, in comparison.html in the first folder"),
        ("jax-ddpm report runs/a runs/b --out page.html", "in another file"),
    ),
    flags=("--out",),
)


@dataclass(frozen=True)
class ReportFlags:
    """The flags of `jax-ddpm report`."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of the runs, up to six."""
    out: Path | None = None
    """The HTML file to write. None: report.html in the run folder, or for several runs
    comparison.html in the first one."""


def read(args: Sequence[str]) -> Parsed[ReportFlags]:
    """Read the flags in `args`."""
    return parse(ReportFlags, args, HELP)


def run(args: Sequence[str]) -> None:
    """Read the command line and write the page."""
    parsed = read(args)
    with parsed.naming_flags_as_typed():
        from jax_ddpm.jobs.report import write_report

        out = write_report(parsed.flags.runs, parsed.flags.out)
    print(f"Wrote {out}: open it in a browser")
