"""The commands of `jax-ddpm`; each is a module with a function `run(args)`."""

import importlib
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from jax_ddpm.errors import nearest

COMMANDS = {
    "train": "train a model; run the same command again to resume",
    "sample": "draw images from a run, or edit pictures with it",
    "evaluate": "measure how good a run's images are, or its likelihood",
    "convert": "import weights from PyTorch and other sources, or export them",
    "plot": "draw noise schedules, the forward process, or a comparison of samplers",
    "report": "show a run, or several, on one page: curves, samples, settings",
    "parity": "compare JAX with PyTorch, quantity by quantity",
    "prepare": "write a data set, of your pictures or of emoji",
    "bench": "measure speed and memory, also against PyTorch",
}


PRINT = ("-h", "--help", "--help-all", "help", "--version", "--dry-run")


def prints_only(args: Sequence[str]) -> bool:
    """Whether the command line `args` asks for text and nothing else."""
    return (
        not args or args[0] not in COMMANDS or args[0] == "bench" or not set(PRINT).isdisjoint(args)
    )


def run_command(args: Sequence[str]) -> NoReturn:
    """Run the command named by the first of `args`, and exit."""
    if not args or args[0] in ("-h", "--help", "--help-all", "help"):
        print_and_exit(format_overview())
    if args[0] == "--version":
        from jax_ddpm import __version__

        print_and_exit(f"jax_ddpm {__version__}")
    name = args[0]
    if name not in COMMANDS:
        sys.exit(f"error: {describe_unknown(name)}")
    from jax_ddpm.cli.ending import exit_after

    exit_after(lambda: importlib.import_module(f"jax_ddpm.cli.{name}").run(args[1:]))


def print_and_exit(text: str) -> NoReturn:
    """Print `text` and exit, quietly if its reader has closed the pipe."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        sys.exit(f"error: stdout: {error.strerror}")
    sys.exit(0)


def format_overview() -> str:
    """The help of `jax-ddpm`: all commands, and examples."""
    commands = "\n".join(f"  {name:10}{summary}" for name, summary in COMMANDS.items())
    return f"""usage: jax-ddpm COMMAND [FLAGS]

Denoising diffusion probabilistic models in JAX.

{commands}

examples:
  jax-ddpm train                      10,000 Fashion-MNIST images, seven minutes on two CPU cores
  jax-ddpm sample runs/fashion-cpu    64 images of that run, as samples/seed_0.png in its folder
  jax-ddpm train --help               the most important flags; --help-all lists all of them
  jax-ddpm --version"""


def describe_unknown(name: str) -> str:
    """Explain that `name` is not a command, and suggest one."""
    if name.startswith("-"):
        return f"the command is missing before {name}: jax-ddpm {' | '.join(COMMANDS)}"
    near = nearest(name, COMMANDS)
    hint = f": did you mean {near}?" if near else ""
    return f"{name!r} is not a command{hint} (jax-ddpm --help lists all of them)"
