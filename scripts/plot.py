"""Figures: `python scripts/plot.py schedules`, `plot.py forward`, `plot.py samplers RUN`."""

import sys

from jax_ddpm.cli import parsing as cli
from jax_ddpm.jobs.compare_samplers import CompareArgs, compare_samplers
from jax_ddpm.jobs.plot import ForwardArgs, SchedulesArgs, plot_forward, plot_schedules


def main() -> None:
    """Parse the command line and draw."""
    match cli.command(sys.argv[1:], ["schedules", "forward", "samplers"], prog="plot.py"):
        case "schedules":
            plot_schedules(cli.parse(SchedulesArgs, sys.argv[2:], prog="plot.py schedules"))
        case "forward":
            plot_forward(cli.parse(ForwardArgs, sys.argv[2:], prog="plot.py forward"))
        case "samplers":
            compare_samplers(cli.parse(CompareArgs, sys.argv[2:], prog="plot.py samplers"))


if __name__ == "__main__":
    cli.run(main)
