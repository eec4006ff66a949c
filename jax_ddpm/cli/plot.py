"""`jax-ddpm plot`: figures of noise schedules, the forward process, and a sampler comparison."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from jax_ddpm.cli.ending import suggest
from jax_ddpm.cli.flags import Flat
from jax_ddpm.cli.help import Help
from jax_ddpm.cli.parsing import choose, parse
from jax_ddpm.config.jobs import CompareJob, Weights
from jax_ddpm.process.schedules import ScheduleName

EXAMPLES = (
    ("jax-ddpm plot schedules --schedules linear cosine", "noise schedules over t"),
    ("jax-ddpm plot forward --preset annotated", "pictures turning into noise"),
    ("jax-ddpm plot samplers runs/fashion-cpu", "image quality against network evaluations"),
)
HELP = Help(
    usage="jax-ddpm plot schedules | forward | samplers [FLAGS]",
    summary="Draw a figure. Each figure has its own --help.",
    examples=EXAMPLES,
    flags=(),
)
SCHEDULES_HELP = HELP._replace(
    usage="jax-ddpm plot schedules [FLAGS]",
    summary="Plot the tables of one or several noise schedules over t.",
    flags=("--schedules", "--num-timesteps", "--preset", "--out"),
)
FORWARD_HELP = HELP._replace(
    usage="jax-ddpm plot forward [FLAGS]",
    summary="Draw the forward process: pictures at several timesteps as they turn into noise.",
    flags=(
        "--preset",
        "--image",
        "--image-size",
        "--steps",
        "--percent",
        "--num",
        "--seed",
        "--out",
    ),
)
SAMPLERS_HELP = HELP._replace(
    usage="jax-ddpm plot samplers RUN [FLAGS]",
    summary="Plot how far a run's images are from its data, for every sampler and number of "
    "network evaluations. The distance is the Frechet distance in features that ship, or else one "
    "between pixels. A band shows how far other images from the data are; differences inside it "
    "are not significant.",
    flags=(
        "--samplers",
        "--evaluations",
        "--num",
        "--features",
        "--spacing",
        "--seed",
        "--batch-size",
        "--out",
    ),
)


@dataclass(frozen=True)
class SchedulesFlags:
    """The flags of `jax-ddpm plot schedules`."""

    out: Path = Path("schedules.png")
    """PNG file to write."""
    preset: str = "fashion-cpu"
    """The preset that provides the schedule and T, unless you give others."""
    schedules: tuple[ScheduleName, ...] = ()
    """Schedules to compare; default: the preset's."""
    num_timesteps: int | None = None
    """T; None: the preset's."""


@dataclass(frozen=True)
class ForwardFlags:
    """The flags of `jax-ddpm plot forward`."""

    out: Path = Path("forward.png")
    """PNG file to write."""
    preset: str = "fashion-cpu"
    """The preset that provides the schedule, T and, without --image, the data."""
    image: Path | None = None
    """A picture of your own to draw; None: pictures from the preset's data."""
    image_size: int | None = None
    """Side to which pictures are cropped and resized; None: keep their size."""
    steps: tuple[int, ...] = ()
    """Timesteps to draw, 0 to T - 1."""
    percent: tuple[float, ...] = ()
    """Timesteps to draw, in percent of T; default: 25 50 75 100, unless --steps is given."""
    num: int | None = None
    """Number of pictures from the preset's data, without --image; None: 4."""
    seed: int = 0
    """Seed of the noise."""


@dataclass(frozen=True)
class SamplersFlags:
    """The flags of `jax-ddpm plot samplers`."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    job: Flat[CompareJob] = field(default_factory=CompareJob)
    weights: Flat[Weights] = field(default_factory=Weights)


FIGURES: dict[str, tuple[type[Any], Help]] = {
    "schedules": (SchedulesFlags, SCHEDULES_HELP),
    "forward": (ForwardFlags, FORWARD_HELP),
    "samplers": (SamplersFlags, SAMPLERS_HELP),
}


def read(args: Sequence[str]) -> tuple[str, Any]:
    """Read which figure `args` ask for, and its flags."""
    name = choose("jax-ddpm plot", args, FIGURES, HELP)
    kind, help_ = FIGURES[name]
    return name, parse(kind, args[1:], help_).flags


def run(args: Sequence[str]) -> None:
    """Read the command line and draw."""
    name, flags = read(args)
    match name:
        case "schedules":
            draw_schedules(flags)
        case "forward":
            draw_forward(flags)
        case "samplers":
            draw_samplers(flags)


def draw_schedules(flags: SchedulesFlags) -> None:
    """Plot the tables of schedules."""
    from jax_ddpm.jobs.plot import plot_schedules

    plot_schedules(**vars(flags))
    chosen = ["--schedule", flags.schedules[0]] if flags.schedules else ["--preset", flags.preset]
    suggest("train", *chosen)


def draw_forward(flags: ForwardFlags) -> None:
    """Draw pictures as they turn into noise."""
    from jax_ddpm.jobs.plot import plot_forward

    plot_forward(**vars(flags))
    suggest("train", "--preset", flags.preset)


def draw_samplers(flags: SamplersFlags) -> None:
    """Plot the quality of every sampler's images."""
    from jax_ddpm.jobs.compare_samplers import compare_samplers

    compare_samplers(flags.run, flags.job, flags.weights)
    suggest("sample", flags.run, "--sampler", "NAME", "--steps", "N")
