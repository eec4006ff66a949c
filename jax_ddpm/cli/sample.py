"""`jax-ddpm sample`: draw images from a run, or edit pictures with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from jax_ddpm.cli.arguments import is_flag
from jax_ddpm.cli.edit import EditFlags, read_edit
from jax_ddpm.cli.ending import suggest
from jax_ddpm.cli.flags import Flat, read_flags
from jax_ddpm.cli.help import Help, wants_help
from jax_ddpm.cli.parsing import Parsed, parse
from jax_ddpm.cli.start import StartFlags, start
from jax_ddpm.config.jobs import SampleJob, Weights
from jax_ddpm.config.sample import SampleConfig

HELP = Help(
    usage="jax-ddpm sample RUN [FLAGS]",
    summary="Draw images from a trained run. Settings that you do not give are the run's own; "
    "another sampler brings its own grid of timesteps.",
    examples=(
        ("jax-ddpm sample runs/fashion-cpu", "64 images, with the run's settings"),
        ("jax-ddpm sample RUN --sampler dpmpp_2m --steps 20 --out a.gif", "another sampler"),
        ("jax-ddpm sample RUN --inpaint photo.png --mask hole.png", "fill in part of a picture"),
    ),
    flags=(
        "--num",
        "--sampler",
        "--steps",
        "--seed",
        "--out",
        "--label",
        "--guidance",
        "--image",
        "--weights",
        "--batch-size",
    ),
)
SHORT = {"--steps": ("--num-steps",)}


@dataclass(frozen=True)
class SampleFlags:
    """The flags of `jax-ddpm sample`."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    job: Flat[SampleJob] = field(default_factory=SampleJob)
    settings: Flat[SampleConfig] = field(default_factory=SampleConfig)
    weights: Flat[Weights] = field(default_factory=Weights)
    edit: Flat[EditFlags] = field(default_factory=EditFlags)
    start: Flat[StartFlags] = field(default_factory=StartFlags)


def read(args: Sequence[str]) -> Parsed[SampleFlags]:
    """Read the flags in `args`; the help shows the settings of the run that they name."""
    settings = load_settings(args) if wants_help(args) else None
    if settings is None:
        of_run = [flag.name for flag in read_flags(SampleConfig)]
        return parse(SampleFlags, args, HELP._replace(of_run=of_run), short=SHORT)
    default = SampleFlags(tyro.MISSING, settings=settings)
    return parse(
        SampleFlags, args, HELP._replace(defaults="the run's"), default=default, short=SHORT
    )


def load_settings(args: Sequence[str]) -> SampleConfig | None:
    """Load the sampling settings of the run that `args` name; None if they name no run."""
    from jax_ddpm import runs

    folders = [Path(arg) for arg in args if not is_flag(arg)]
    known = [folder for folder in folders if runs.holds_run(folder)]
    return runs.load(known[0]).config.sample if known else None


def run(args: Sequence[str]) -> None:
    """Read the command line, join the other processes, and sample."""
    parsed = read(args)
    with parsed.naming_flags_as_typed():
        start(parsed.flags.start)
        draw(parsed)
    suggest("evaluate", parsed.flags.run)


def draw(parsed: Parsed[SampleFlags]) -> Path:
    """Draw the images and return the path of their file."""
    flags, edit = parsed.flags, read_edit(parsed.flags.edit)
    from jax_ddpm.jobs.sample import sample_run

    changes = parsed.changes("settings")
    return sample_run(flags.run, flags.job, changes, weights=flags.weights, edit=edit)
