"""`jax-ddpm evaluate`: how good a run's images are, or how probable its data is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from jax_ddpm.cli.ending import suggest
from jax_ddpm.cli.flags import Flat, read_flags
from jax_ddpm.cli.help import Help, wants_help
from jax_ddpm.cli.parsing import Parsed, parse
from jax_ddpm.cli.sample import SHORT as SHORT_STEPS
from jax_ddpm.cli.sample import load_settings
from jax_ddpm.cli.start import StartFlags, start
from jax_ddpm.config.jobs import EvaluateJob, QualityJob, Weights
from jax_ddpm.config.sample import SampleConfig

HELP = Help(
    usage="jax-ddpm evaluate RUN [FLAGS]",
    summary="Draw images from a trained run and measure how good they are: distances to the data "
    "(FID with Inception's features), scores, and the nearest training images. Writes a report as "
    "JSON and prints it as a table. With --likelihood, computes instead how probable the data is "
    "under the network, in bits per dimension.",
    examples=(
        ("jax-ddpm evaluate runs/fashion-cpu", "2048 images, in features that need no download"),
        ("jax-ddpm evaluate RUN --num 50000 --measures frechet", "FID as papers report it"),
        ("jax-ddpm evaluate RUN --against OTHER", "compare with another evaluated run"),
        ("jax-ddpm evaluate RUN --likelihood --split test", "the variational bound"),
    ),
    flags=(
        "--num",
        "--measures",
        "--features",
        "--inception",
        "--reference",
        "--against",
        "--sampler",
        "--steps",
        "--weights",
        "--raw-too",
        "--seed",
        "--out",
    ),
    more="jax-ddpm evaluate --likelihood --help shows the flags of the likelihood.",
)
HELP_LIKELIHOOD = Help(
    usage="jax-ddpm evaluate RUN --likelihood [FLAGS]",
    summary="Compute how probable a run's own images are under its network, in bits per dimension "
    "(lower is better). Writes the numbers as JSON and a figure beside it.",
    examples=(
        ("jax-ddpm evaluate RUN --likelihood", "the variational bound of 256 training images"),
        ("jax-ddpm evaluate RUN --likelihood --split test --num 1000", "of 1000 test images"),
        (
            "jax-ddpm evaluate RUN --likelihood --method ode --steps 100",
            "the likelihood from the probability flow",
        ),
    ),
    flags=(
        "--num",
        "--split",
        "--method",
        "--respacing",
        "--steps",
        "--weights",
        "--checkpoint",
        "--batch-size",
        "--seed",
        "--out",
    ),
)
# The flags that ask for the likelihood; all but the first are settings that only it has.
LIKELIHOOD = ("--likelihood", "--method", "--probes")


@dataclass(frozen=True)
class EvaluateFlags:
    """The flags of `jax-ddpm evaluate`."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    job: Flat[QualityJob] = field(default_factory=QualityJob)
    settings: Flat[SampleConfig] = field(default_factory=SampleConfig)
    weights: Flat[Weights] = field(default_factory=Weights)
    start: Flat[StartFlags] = field(default_factory=StartFlags)


@dataclass(frozen=True)
class LikelihoodFlags:
    """The flags of `jax-ddpm evaluate --likelihood`."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    job: Flat[EvaluateJob] = field(default_factory=EvaluateJob)
    weights: Flat[Weights] = field(default_factory=Weights)
    start: Flat[StartFlags] = field(default_factory=StartFlags)


def asks_for_likelihood(args: Sequence[str]) -> bool:
    """Whether the flags in `args` ask for the likelihood, not the quality of images."""
    return any(arg.partition("=")[0] in LIKELIHOOD for arg in args)


def read(args: Sequence[str]) -> Parsed[Any]:
    """Read the flags in `args`; the help shows the settings of the run that they name."""
    if asks_for_likelihood(args):
        return parse(LikelihoodFlags, args, HELP_LIKELIHOOD, short={"--likelihood": ()})
    settings = load_settings(args) if wants_help(args) else None
    if settings is None:
        of_run = [flag.name for flag in read_flags(SampleConfig)]
        return parse(EvaluateFlags, args, HELP._replace(of_run=of_run), short=SHORT_STEPS)
    default = EvaluateFlags(tyro.MISSING, settings=settings)
    help_ = HELP._replace(defaults="the run's")
    return parse(EvaluateFlags, args, help_, default=default, short=SHORT_STEPS)


def run(args: Sequence[str]) -> None:
    """Read the command line, join the other processes, and evaluate."""
    parsed = read(args)
    flags = parsed.flags
    with parsed.naming_flags_as_typed():
        start(flags.start)
        if isinstance(flags, LikelihoodFlags):
            from jax_ddpm.jobs.evaluate import evaluate_run

            evaluate_run(flags.run, flags.job, flags.weights)
        else:
            from jax_ddpm.jobs.quality import evaluate_quality

            evaluate_quality(flags.run, flags.job, parsed.changes("settings"), flags.weights)
    suggest("plot", "samplers", flags.run)
