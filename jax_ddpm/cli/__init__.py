"""The command line: `jax-ddpm COMMAND ...`, with one module per command."""

import os
import sys
from typing import NoReturn


def main(*command: str) -> NoReturn:
    """Run `command` with this process's arguments; by default, the first argument names it.

    Signals are answered, and errors of stdout and stderr are caught, before the libraries are
    imported.
    """
    if os.name != "posix":
        from jax_ddpm.errors import SYSTEMS

        sys.exit(f"error: {SYSTEMS}")
    from jax_ddpm.jobs.display import open_closed_streams, protect_streams
    from jax_ddpm.jobs.interrupt import answer_signals

    open_closed_streams()
    args = [*command, *sys.argv[1:]]
    answer_signals(saves=args[:1] == ["train"])
    from jax_ddpm.cli.commands import prints_only, run_command

    protect_streams(is_the_job=prints_only(args))
    run_command(args)
