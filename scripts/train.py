"""Train a DDPM: `python scripts/train.py`, or with --preset, --run and any setting as a flag."""

import sys
from collections.abc import Sequence

from jax_ddpm.cli import parsing as cli
from jax_ddpm.config.run import Config
from jax_ddpm.devices import processes as distributed
from jax_ddpm.jobs.train import train


def parse(args: Sequence[str]) -> Config:
    """The configuration that `args` give."""
    return cli.parse_config(args, prog="train.py", description="Train a DDPM.")


def main() -> None:
    """Parse the command line, meet the other processes, and train."""
    launch, config = cli.with_launch(sys.argv[1:], parse, prog="train.py")
    distributed.join(launch)
    train(config)


if __name__ == "__main__":
    cli.run(main)
