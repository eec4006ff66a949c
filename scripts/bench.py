"""Benchmarks: `python scripts/bench.py step`, `sampling`, `data` or `memory`."""

import os
import sys

from jax_ddpm.cli import parsing as cli


def main() -> None:
    """Parse the command line and measure."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave PyTorch some memory
    from jax_ddpm.jobs.bench.data import DataArgs, bench_data
    from jax_ddpm.jobs.bench.memory import MemoryArgs, bench_memory
    from jax_ddpm.jobs.bench.step import SamplingArgs, StepArgs, bench_sampling, bench_step

    name = cli.command(sys.argv[1:], ["step", "sampling", "data", "memory"], prog="bench.py")
    args, prog = sys.argv[2:], f"bench.py {name}"
    match name:
        case "step":
            bench_step(cli.parse(StepArgs, args, prog=prog))
        case "sampling":
            bench_sampling(cli.parse(SamplingArgs, args, prog=prog))
        case "data":
            bench_data(cli.parse(DataArgs, args, prog=prog))
        case "memory":
            bench_memory(cli.parse(MemoryArgs, args, prog=prog))


if __name__ == "__main__":
    cli.run(main)
