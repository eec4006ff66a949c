"""The commands of `jax-ddpm`; each is a module with a function `run(args)`."""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from jax_ddpm.errors import nearest

COMMANDS = {
    "train": "train a model; the same command again resumes it",
    "sample": "draw images from a run, guided if you like, or edit pictures with it",
    "evaluate": "measure a run: the likelihood of its images in bits per dimension",
    "convert": "import weights from PyTorch and other sources, or export them",
    "plot": "draw noise schedules, the forward process, or a comparison of samplers",
    "parity": "compare JAX with PyTorch, quantity by quantity",
    "prepare": "write a data set: pictures for TensorFlow Datasets, or the emoji",
    "bench": "measure training steps, sampling, reading of data, or memory",
}


def run_command(args: Sequence[str]) -> NoReturn:
    """Run the command that `args` begins with, and exit."""
    if not args or args[0] in ("-h", "--help", "--help-all", "help"):
        print(format_overview())
        sys.exit(0)
    if args[0] == "--version":
        from jax_ddpm import __version__

        print(f"jax_ddpm {__version__}")
        sys.exit(0)
    name = args[0]
    if name not in COMMANDS:
        sys.exit(f"error: {describe_unknown(name)}")
    from jax_ddpm.cli.ending import exit_after

    exit_after(lambda: importlib.import_module(f"jax_ddpm.cli.{name}").run(args[1:]))


def format_overview() -> str:
    """All commands on one screen."""
    commands = "\n".join(f"  {name:10}{summary}" for name, summary in COMMANDS.items())
    return f"""usage: jax-ddpm COMMAND [FLAGS]

Denoising diffusion probabilistic models in JAX.

{commands}

examples:
  jax-ddpm train                      10,000 Fashion-MNIST images: eight minutes on two CPU cores
  jax-ddpm sample runs/fashion-cpu    64 images of that run, as samples/seed_0.png in its folder
  jax-ddpm train --help               the flags that matter; --help-all lists all of them
  jax-ddpm --version"""


def describe_unknown(name: str) -> str:
    """A sentence about a word that is not a command."""
    if name.startswith("-"):
        return f"the command is missing before {name}: jax-ddpm {' | '.join(COMMANDS)}"
    near = nearest(name, COMMANDS)
    hint = f": did you mean {near}?" if near else ""
    return f"{name!r} is not a command{hint} (jax-ddpm --help lists all of them)"
