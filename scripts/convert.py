"""Weights from and to PyTorch: `convert.py FILE --source NAME --out RUN`, `RUN --to torch`."""

import sys

from jax_ddpm.cli import parsing as cli
from jax_ddpm.cli.convert import parse_import
from jax_ddpm.jobs.convert import ExportArgs, export_weights, import_weights


def main() -> None:
    """Parse the command line and convert."""
    args = sys.argv[1:]
    if any(arg.split("=")[0] == "--to" for arg in args):
        export_weights(cli.parse(ExportArgs, args, prog="convert.py"))
    else:
        import_weights(parse_import(args, prog="convert.py"))


if __name__ == "__main__":
    cli.run(main)
