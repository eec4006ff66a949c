"""`jax-ddpm bench`: measure speed, memory, how both grow, or what presets learn."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from jax_ddpm.cli.help import Help
from jax_ddpm.cli.parsing import choose, parse
from jax_ddpm.errors import require_suffix

NAMES = ("step", "sampling", "data", "memory", "presets", "growth", "devices", "start", "suite")
EXAMPLES = (
    ("jax-ddpm bench --suite", "everything, against PyTorch: JSON, a figure and a page"),
    ("jax-ddpm bench step --dtype bfloat16 --batch-size 128", "training steps, against PyTorch"),
    ("jax-ddpm bench sampling --network lucidrains --batch-size 1", "sampling with any network"),
    ("jax-ddpm bench start", "seconds from the command to the first training step"),
    ("jax-ddpm bench data", "images per second from every kind of source"),
    ("jax-ddpm bench memory --presets fashion-cpu ddpm-cifar10", "memory of a training step"),
    ("jax-ddpm bench presets --minutes 5", "image quality of presets after the same time"),
)
HELP = Help(
    usage="jax-ddpm bench MEASUREMENT [FLAGS]",
    summary=f"Measure speed and memory, or what presets learn: {', '.join(NAMES)} (also --suite). "
    "Each measurement has its own --help.",
    examples=EXAMPLES,
    flags=(),
)


def read(args: Sequence[str]) -> tuple[Callable[[Any], object], Any]:
    """Read which measurement `args` ask for, and its flags."""
    if args[:1] == ["--suite"]:
        args = ["suite", *args[1:]]
    name = choose("jax-ddpm bench", args, NAMES, HELP)
    from jax_ddpm.jobs.bench import data, devices, growth, memory, presets, start, step, suite

    kinds: dict[str, tuple[type[Any], Callable[[Any], object]]] = {
        "step": (step.StepArgs, step.bench_step),
        "sampling": (step.SamplingArgs, step.bench_sampling),
        "data": (data.DataArgs, data.bench_data),
        "memory": (memory.MemoryArgs, memory.bench_memory),
        "presets": (presets.PresetsArgs, presets.bench_presets),
        "growth": (growth.GrowthArgs, growth.bench_growth),
        "devices": (devices.DevicesArgs, devices.bench_devices),
        "start": (start.StartArgs, start.bench_start),
        "suite": (suite.SuiteArgs, suite.bench_suite),
    }
    kind, measure = kinds[name]
    help_ = HELP._replace(usage=f"jax-ddpm bench {name} [FLAGS]", summary=kind.__doc__ or "")
    return measure, parse(kind, args[1:], help_).flags


def run(args: Sequence[str]) -> None:
    """Read the command line and measure."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave PyTorch some memory
    measure, flags = read(args)
    out = getattr(flags, "out", None)
    if out is not None:
        require_suffix(out, ".json")
    measure(flags)
