"""The report of runs: one HTML page with curves, samples, settings and commands."""

from collections.abc import Sequence
from pathlib import Path

from jax_ddpm.data.base import ImageSource
from jax_ddpm.errors import UserError, require
from jax_ddpm.files.atomic import require_writable, write_atomically
from jax_ddpm.jobs.report.content import read_content
from jax_ddpm.jobs.report.page import render_page

MAX_RUNS = 6  # as many as there are colours


def write_report(
    folders: Sequence[Path], out: Path | None = None, *, source: ImageSource | None = None
) -> Path:
    """Write the report of the runs in `folders`, side by side, and return the path of the page.

    The page is report.html in the folder of a single run, and comparison.html in the first of
    several folders, unless `out` names another file. `source` has the images of a single run, if
    they are open already. Raises UserError for a folder that is no run.
    """
    if not 1 <= len(folders) <= MAX_RUNS:
        raise UserError(f"report takes 1 to {MAX_RUNS} runs, not {len(folders)}")
    contents = [read_content(folder, source) for folder in folders]
    if out is None:
        out = folders[0] / ("report.html" if len(folders) == 1 else "comparison.html")
    suits = out.suffix.lower() in (".html", ".htm")
    require(suits, "--out", out, "a file that ends in .html")
    require_writable(out)
    text = render_page(contents)
    write_atomically(out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return out
