"""Write images as a data set of TensorFlow Datasets: prepare_data.py --name NAME --data..."""

import sys

from jax_ddpm.cli import parsing as cli
from jax_ddpm.jobs import prepare_data as prepare


def main() -> None:
    """Parse the command line and write the data set."""
    prepare.run(cli.parse(prepare.PrepareArgs, sys.argv[1:], prog="prepare_data.py"))


if __name__ == "__main__":
    cli.run(main)
