"""`jax-ddpm plot`: figures of noise schedules, the forward process, data, and samplers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from jax_ddpm.cli.ending import suggest
from jax_ddpm.cli.flags import Flat
from jax_ddpm.cli.help import Help
from jax_ddpm.cli.parsing import choose, parse
from jax_ddpm.config.jobs import ChainSettings, CompareJob, FigureData, Weights
from jax_ddpm.process.schedules import ScheduleName

EXAMPLES = (
    ("jax-ddpm plot schedules --schedules linear cosine", "noise schedules over t"),
    ("jax-ddpm plot forward --preset annotated", "pictures turning into noise"),
    ("jax-ddpm plot data --preset epita", "a training batch as the network sees it"),
    ("jax-ddpm plot samplers runs/fashion-cpu", "image quality against network evaluations"),
)
HELP = Help(
    usage="jax-ddpm plot schedules | forward | data | samplers [FLAGS]",
    summary="Draw a figure. Each figure has its own --help.",
    examples=EXAMPLES,
    flags=(),
)
SCHEDULES_HELP = HELP._replace(
    usage="jax-ddpm plot schedules [FLAGS]",
    summary="Plot the tables of one or several noise schedules over t.",
    flags=(
        "--schedules",
        "--num-timesteps",
        "--beta-start",
        "--beta-end",
        "--cosine-s",
        "--betas-file",
        "--preset",
        "--run",
        "--out",
    ),
)
FORWARD_HELP = HELP._replace(
    usage="jax-ddpm plot forward [FLAGS]",
    summary="Draw the forward process: pictures at several timesteps as they turn into noise.",
    flags=(
        "--preset",
        "--run",
        "--schedule",
        "--num-timesteps",
        "--data.path",
        "--image",
        "--image-size",
        "--steps",
        "--percent",
        "--num",
        "--seed",
        "--out",
    ),
)
DATA_HELP = HELP._replace(
    usage="jax-ddpm plot data [FLAGS]",
    summary="Draw images of a training batch as the network sees them before noise is added: "
    "cropped, resized and mirrored.",
    flags=("--preset", "--run", "--data.path", "--num", "--step", "--seed", "--out"),
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
    schedules: tuple[ScheduleName, ...] = ()
    """Schedules to compare; default: the preset's or the run's."""
    chain: Flat[ChainSettings] = field(default_factory=ChainSettings)


@dataclass(frozen=True)
class ForwardFlags:
    """The flags of `jax-ddpm plot forward`."""

    out: Path = Path("forward.png")
    """PNG file to write."""
    schedule: ScheduleName | None = None
    """The schedule; None: the preset's or the run's."""
    chain: Flat[ChainSettings] = field(default_factory=ChainSettings)
    data: FigureData = field(default_factory=FigureData)
    image: Path | None = None
    """A picture of your own to draw; None: pictures from the data."""
    image_size: int | None = None
    """Side to which pictures are cropped and resized; None: keep their size."""
    steps: tuple[int, ...] = ()
    """Timesteps to draw, 0 to T - 1."""
    percent: tuple[float, ...] = ()
    """Timesteps to draw, in percent of T; default: 25 50 75 100, unless --steps is given."""
    num: int | None = None
    """Number of pictures from the data, without --image; None: 4."""
    seed: int = 0
    """Seed of the noise."""


@dataclass(frozen=True)
class DataFlags:
    """The flags of `jax-ddpm plot data`."""

    out: Path = Path("data.png")
    """PNG file to write."""
    preset: str = "fashion-cpu"
    """The preset that provides the data and the batch size."""
    run: Path | None = None
    """Folder of a run that provides them instead."""
    data: FigureData = field(default_factory=FigureData)
    num: int = 64
    """Number of images, at most a batch."""
    step: int = 1
    """The training step whose batch is drawn."""
    seed: int | None = None
    """Seed of the training; None: the preset's or the run's."""


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
    "data": (DataFlags, DATA_HELP),
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
        case "data":
            draw_data(flags)
        case "samplers":
            draw_samplers(flags)


def draw_schedules(flags: SchedulesFlags) -> None:
    """Plot the tables of schedules."""
    from jax_ddpm.jobs.plot import plot_schedules

    plot_schedules(**vars(flags))
    suggest_training(flags.chain, *(["--schedule", flags.schedules[0]] if flags.schedules else []))


def draw_forward(flags: ForwardFlags) -> None:
    """Draw pictures as they turn into noise."""
    from jax_ddpm.jobs.plot import plot_forward

    plot_forward(**vars(flags))
    suggest_training(flags.chain)


def draw_data(flags: DataFlags) -> None:
    """Draw a training batch."""
    from jax_ddpm.jobs.plot import plot_data

    chain = ChainSettings(flags.preset, flags.run)
    plot_data(flags.out, chain, flags.data, flags.num, flags.step, flags.seed)
    suggest_training(chain)


def suggest_training(chain: ChainSettings, *more: str) -> None:
    """Suggest to train the run that was drawn, or else a new one."""
    of = ["--preset", chain.preset] if chain.run is None else ["--run", str(chain.run)]
    suggest("train", *(more if more and chain.run is None else of))


def draw_samplers(flags: SamplersFlags) -> None:
    """Plot the quality of every sampler's images."""
    from jax_ddpm.jobs.compare_samplers import compare_samplers

    compare_samplers(flags.run, flags.job, flags.weights)
    suggest("sample", flags.run, "--sampler", "NAME", "--steps", "N")
