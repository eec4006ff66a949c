"""Draw images from a run: `python scripts/sample.py RUN --num 64 --out samples.png`."""

import sys
from collections.abc import Sequence

from jax_ddpm import cli
from jax_ddpm.generate import SampleArgs, sample_run
from jax_ddpm.training import distributed


def parse(args: Sequence[str]) -> SampleArgs:
    """The job that `args` describe."""
    description = "Draw images from the newest checkpoint of a run."
    return cli.parse(SampleArgs, args, prog="sample.py", description=description)


def main() -> None:
    """Parse the command line, meet the other processes, and sample."""
    launch, job = cli.with_launch(sys.argv[1:], parse, prog="sample.py")
    distributed.join(launch)
    sample_run(job)


if __name__ == "__main__":
    cli.run(main)
