"""`jax-ddpm parity`: compare JAX with PyTorch, quantity by quantity."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax

from jax_ddpm.cli.help import Help
from jax_ddpm.cli.parsing import parse

if TYPE_CHECKING:
    from jax_ddpm.parity.report import ParityArgs

HELP = Help(
    usage="jax-ddpm parity [FLAGS]",
    summary="Compare JAX with PyTorch, quantity by quantity. Prints every difference, writes "
    "report.html and report.json, and exits with code 1 if any difference is out of tolerance.",
    examples=(
        ("jax-ddpm parity", "the whole library against the PyTorch reference"),
        ("jax-ddpm parity --parts schedules steps", "only some parts"),
        ("jax-ddpm parity --weights model.pt --source lucidrains", "the network of a checkpoint"),
    ),
    flags=("--out", "--parts", "--weights", "--source", "--config", "--prefix", "--seed"),
)


def read(args: Sequence[str]) -> "ParityArgs":
    """Read the flags in `args`."""
    from jax_ddpm.parity.report import ParityArgs

    return parse(ParityArgs, args, HELP).flags


def run(args: Sequence[str]) -> None:
    """Read the command line, compare, and exit with code 1 if anything is out of tolerance."""
    flags = read(args)
    if "JAX_PLATFORMS" not in os.environ:  # accelerators multiply float32 in lower precision
        jax.config.update("jax_platforms", "cpu")
    from jax_ddpm.parity.report import write_report

    if not write_report(flags):
        sys.exit(1)
