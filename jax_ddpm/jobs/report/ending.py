"""What a run has come to, in a few figures, and the commands that may come next."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jax_ddpm.runs import metrics
from jax_ddpm.runs.calls import Call, read_calls
from jax_ddpm.runs.folder import Run


class Next(NamedTuple):
    """A command that may come next."""

    why: str
    words: tuple[str, ...]
    """The command and its arguments, without `jax-ddpm`."""


def summarize_run(run: Run) -> str:
    """Say how long training took, and its last losses and distance, in one line."""
    rows, calls = metrics.read(run.metrics), read_calls(run.calls)
    return ", ".join(f"{name} {text}".strip() for name, text in list_figures(rows, calls))


def list_figures(rows: Sequence[metrics.Row], calls: Sequence[Call]) -> Iterator[tuple[str, str]]:
    """List the steps, the time and the last figures of a run, as pairs of a name and a value."""
    yield "", f"{rows[-1].step if rows else 0:,} steps"
    if calls:
        yield "", format_duration(sum(call.seconds for call in calls))
    for name, field in (
        ("loss", "loss"),
        ("validation loss", "validation_loss"),
        ("distance", "frechet"),
    ):
        if found := [value for row in rows if (value := getattr(row, field)) is not None]:
            yield name, f"{found[-1]:.4g}"


def format_duration(seconds: float) -> str:
    """Write a duration with the unit that suits it."""
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"


def list_next(run: Run, step: int) -> list[Next]:
    """List the commands that people type next: draw, measure, and train on."""
    folder, train = str(run.folder), run.config.train
    draw = Next("draw images", ("sample", folder, "--num", "64", "--seed", "1"))
    measure = Next("measure how good they are", ("evaluate", folder))
    if step < train.num_steps:
        return [Next("continue training", ("train", "--run", folder)), draw, measure]
    if train.decay == "constant":
        longer = ("train", "--run", folder, "--train.num-steps", str(2 * train.num_steps))
        return [draw, measure, Next("train as long again", longer)]
    more = ("--train.init-from", folder, "--run", f"{folder}-more")
    preset = ("train", "--preset", run.config.preset, *more)
    return [draw, measure, Next("train on, in a new run", preset)]
