"""The command line: `jax-ddpm COMMAND ...`, with one module per command."""

import sys
from typing import NoReturn


def main(*command: str) -> NoReturn:
    """Run `command` with this process's arguments; by default, the first argument names it."""
    from jax_ddpm.cli.commands import run_command

    run_command([*command, *sys.argv[1:]])
