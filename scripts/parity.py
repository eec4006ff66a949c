"""Compare JAX with PyTorch, quantity by quantity: `python scripts/parity.py`.

Prints every difference, writes report.html and report.json, and exits with 1 if one is out of
tolerance. `--weights FILE --source NAME` does so for the network of a checkpoint.
"""

import os
import sys

from jax_ddpm.cli import parsing as cli

DESCRIPTION = "Compare JAX with PyTorch, quantity by quantity."


def main() -> None:
    """Parse the command line, compare, and exit with 1 if anything is out of tolerance."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from jax_ddpm.parity.report import ParityArgs, write_report

    if not write_report(
        cli.parse(ParityArgs, sys.argv[1:], prog="parity.py", description=DESCRIPTION)
    ):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
