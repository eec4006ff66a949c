"""What a run is worth: `python scripts/evaluate.py RUN --likelihood`."""

import sys
from collections.abc import Sequence

from jax_ddpm.cli import parsing as cli
from jax_ddpm.devices import processes as distributed
from jax_ddpm.jobs.evaluate import EvaluateArgs, evaluate_run


def parse(args: Sequence[str]) -> EvaluateArgs:
    """The job that `args` describe."""
    description = "Evaluate the newest checkpoint of a run."
    return cli.parse(EvaluateArgs, args, prog="evaluate.py", description=description)


def main() -> None:
    """Parse the command line, meet the other processes, and evaluate."""
    launch, job = cli.with_launch(sys.argv[1:], parse, prog="evaluate.py")
    distributed.join(launch)
    evaluate_run(job)


if __name__ == "__main__":
    cli.run(main)
