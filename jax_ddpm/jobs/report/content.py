"""What a report shows of one run, read from its folder."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jax_ddpm import runs
from jax_ddpm.data.base import ImageSource
from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import read_json
from jax_ddpm.jobs.messages import tell_if_slow
from jax_ddpm.jobs.quality_report import read_report
from jax_ddpm.jobs.report.pictures import Grid, draw_data, draw_strip, embed_file, read_grids
from jax_ddpm.jobs.validation import open_training_data
from jax_ddpm.runs import metrics
from jax_ddpm.runs.calls import Call, read_calls
from jax_ddpm.runs.folder import Run
from jax_ddpm.runs.log import read_rows

T = TypeVar("T")


class Content(NamedTuple):
    """What a report shows of one run. Pictures are data URIs."""

    run: Run
    rows: list[metrics.Row]
    calls: list[Call]
    grids: list[Grid]
    strip: str | None
    data: str | None
    quality: dict[str, Any] | None
    """The report of `jax-ddpm evaluate`."""
    neighbours: str | None
    likelihood: dict[str, Any] | None
    """The report of `jax-ddpm evaluate --likelihood`."""
    missing: tuple[str, ...] = ()
    """Why parts are left out, in sentences."""

    @property
    def step(self) -> int:
        """The last step that is logged; 0 without any."""
        return self.rows[-1].step if self.rows else 0

    @property
    def environment(self) -> dict[str, str]:
        """Where the newest steps were taken; {} if that was not noted."""
        return self.calls[-1].environment if self.calls else {}


def read_content(folder: Path, source: ImageSource | None = None) -> Content:
    """Read what a report shows of the run in `folder`.

    `source` has its images if they are open already. What cannot be read is left out, and
    `missing` says why. Raises UserError if `folder` is no run.
    """
    run, missing = runs.load(folder), list[str]()

    def attempt(what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except (UserError, OSError) as error:
            missing.append(f"{what} left out: {error}.")
            return otherwise

    evaluation = folder / "evaluation"
    neighbours, likelihood = evaluation / "quality_neighbours.png", evaluation / "likelihood.json"
    quality = evaluation / "quality.json"
    return Content(
        run,
        attempt("The curves are", lambda: read_rows(run.metrics, run.checkpoints), []),
        attempt("The times are", lambda: read_calls(run.calls), []),
        attempt("The samples are", lambda: read_grids(run), []),
        attempt("The images emerging from noise are", lambda: draw_strip(run), None),
        attempt("The data is", lambda: draw_data(run, source or open_images(run)), None),
        attempt("The evaluation is", lambda: read_report(quality), None)
        if quality.is_file()
        else None,
        attempt("The nearest images are", lambda: embed_file(neighbours), None)
        if neighbours.is_file()
        else None,
        attempt("The likelihood is", lambda: read_likelihood(likelihood), None)
        if likelihood.is_file()
        else None,
        tuple(missing),
    )


def open_images(run: Run) -> ImageSource:
    """Open the images that the run was trained on."""
    with tell_if_slow(f"Opening the images of {run.folder}"):
        source, _ = open_training_data(run.config)
    return source


def read_likelihood(path: Path) -> dict[str, Any]:
    """Read the report of a likelihood. Raises UserError for anything else."""
    report = read_json(path, "a report of jax-ddpm evaluate --likelihood")
    with suppress(TypeError, KeyError):
        report["bits_per_dimension"] + 0.0
        return dict(report)
    raise UserError(f"{path} is not a report of jax-ddpm evaluate --likelihood")
