"""What a run is worth: `python scripts/evaluate.py RUN --likelihood`."""

import sys

from jax_ddpm import cli
from jax_ddpm.evaluation.command import EvaluateArgs, evaluate_run


def main() -> None:
    """Parse the command line and evaluate."""
    description = "Evaluate the newest checkpoint of a run."
    evaluate_run(cli.parse(EvaluateArgs, sys.argv[1:], prog="evaluate.py", description=description))


if __name__ == "__main__":
    cli.run(main)
