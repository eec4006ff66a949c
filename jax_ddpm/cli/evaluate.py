"""`jax-ddpm evaluate`: the likelihood of a run's images, in bits per dimension."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from jax_ddpm.cli.ending import suggest
from jax_ddpm.cli.flags import Flat
from jax_ddpm.cli.help import Help
from jax_ddpm.cli.parsing import Parsed, parse
from jax_ddpm.cli.start import StartFlags, start
from jax_ddpm.config.jobs import EvaluateJob, Weights

HELP = Help(
    usage="jax-ddpm evaluate RUN [FLAGS]",
    summary="Compute how probable a run's own images are under its network, in bits per dimension "
    "(lower is better). Writes the numbers as JSON and a figure beside it.",
    examples=(
        ("jax-ddpm evaluate runs/fashion-cpu", "the variational bound of 256 training images"),
        ("jax-ddpm evaluate RUN --split test --num 1000", "the bound of 1000 test images"),
        (
            "jax-ddpm evaluate RUN --method ode --steps 100",
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
SHORT = {"--likelihood": ()}  # ignored; once it chose the likelihood from several measures


@dataclass(frozen=True)
class EvaluateFlags:
    """The flags of `jax-ddpm evaluate`."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    job: Flat[EvaluateJob] = field(default_factory=EvaluateJob)
    weights: Flat[Weights] = field(default_factory=Weights)
    start: Flat[StartFlags] = field(default_factory=StartFlags)


def read(args: Sequence[str]) -> Parsed[EvaluateFlags]:
    """Read the flags in `args`."""
    return parse(EvaluateFlags, args, HELP, short=SHORT)


def run(args: Sequence[str]) -> None:
    """Read the command line, join the other processes, and evaluate."""
    parsed = read(args)
    flags = parsed.flags
    with parsed.naming_flags_as_typed():
        start(flags.start)
        from jax_ddpm.jobs.evaluate import evaluate_run

        evaluate_run(flags.run, flags.job, flags.weights)
    suggest("plot", "samplers", flags.run)
