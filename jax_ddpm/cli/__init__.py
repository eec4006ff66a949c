"""The command line: `jax-ddpm COMMAND ...`, with one module per command."""

import sys
from typing import NoReturn


def main(*command: str) -> NoReturn:
    """Run `command` with the arguments of this process, the first of which it is by default."""
    from jax_ddpm.cli.commands import run_command

    run_command([*command, *sys.argv[1:]])
