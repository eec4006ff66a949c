"""Draw images from a run: `python scripts/sample.py RUN --num 64 --out samples.png`."""

import sys

from jax_ddpm import cli
from jax_ddpm.generate import SampleArgs, sample_run


def main() -> None:
    """Parse the command line and sample."""
    description = "Draw images from the newest checkpoint of a run."
    sample_run(cli.parse(SampleArgs, sys.argv[1:], prog="sample.py", description=description))


if __name__ == "__main__":
    cli.run(main)
