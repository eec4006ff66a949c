"""Draw images from a run: `python scripts/sample.py RUN --num 64 --out samples.png`."""

import sys
from collections.abc import Sequence

from jax_ddpm.cli import parsing as cli
from jax_ddpm.devices import processes as distributed
from jax_ddpm.jobs.sample import SampleArgs, sample_run


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
