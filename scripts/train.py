"""Train a DDPM: `python scripts/train.py`, or with --preset, --run and any setting as a flag."""

import sys

from jax_ddpm import cli
from jax_ddpm.training.loop import train


def main() -> None:
    """Parse the command line and train."""
    train(cli.parse_config(sys.argv[1:], prog="train.py", description="Train a DDPM."))


if __name__ == "__main__":
    cli.run(main)
