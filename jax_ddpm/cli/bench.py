"""`jax-ddpm bench`: measure training steps, sampling, data loading, memory, or presets."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from jax_ddpm.cli.help import Help
from jax_ddpm.cli.parsing import choose, parse
from jax_ddpm.errors import require_suffix

EXAMPLES = (
    ("jax-ddpm bench step --dtype bfloat16 --batch-size 128", "training steps, against PyTorch"),
    ("jax-ddpm bench data", "images per second from every kind of source"),
    ("jax-ddpm bench memory --presets fashion-cpu ddpm-cifar10", "memory of a training step"),
    ("jax-ddpm bench presets --minutes 5", "image quality of presets after the same time"),
)
HELP = Help(
    usage="jax-ddpm bench step | sampling | data | memory | presets [FLAGS]",
    summary="Measure speed, memory, or what presets learn. Each measurement has its own --help.",
    examples=EXAMPLES,
    flags=(),
)
NAMES = ("step", "sampling", "data", "memory", "presets")


def read(args: Sequence[str]) -> tuple[Callable[[Any], object], Any]:
    """Read which measurement `args` ask for, and its flags."""
    name = choose("jax-ddpm bench", args, NAMES, HELP)
    from jax_ddpm.jobs.bench import data, memory, presets, step

    kinds: dict[str, tuple[type[Any], Callable[[Any], object]]] = {
        "step": (step.StepArgs, step.bench_step),
        "sampling": (step.SamplingArgs, step.bench_sampling),
        "data": (data.DataArgs, data.bench_data),
        "memory": (memory.MemoryArgs, memory.bench_memory),
        "presets": (presets.PresetsArgs, presets.bench_presets),
    }
    kind, measure = kinds[name]
    help_ = HELP._replace(usage=f"jax-ddpm bench {name} [FLAGS]", summary=kind.__doc__ or "")
    return measure, parse(kind, args[1:], help_).flags


def run(args: Sequence[str]) -> None:
    """Read the command line and measure."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave PyTorch some memory
    measure, flags = read(args)
    if flags.out is not None:
        require_suffix(flags.out, ".json")
    measure(flags)
