"""Measure how much of a device's memory a training step takes, from the compiled program."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import jax

from jax_ddpm.config.presets import PRESETS, find_preset
from jax_ddpm.config.run import Config
from jax_ddpm.devices.layout import get_device_name
from jax_ddpm.jobs.bench import timing
from jax_ddpm.jobs.memory import measure_step_memory
from jax_ddpm.models.remat import Remat

GIB = 2**30


@dataclass(frozen=True)
class MemoryArgs:
    """Memory of a training step of each preset, with and without settings that change it."""

    presets: tuple[str, ...] = ("fashion-cpu",)
    """Presets to measure; all: every preset."""
    settings: bool = True
    """Also measure with each setting that changes the memory."""
    batch_size: int | None = None
    """Images per device; None: the preset's."""
    out: Path | None = None
    """JSON file to write the results to."""


def bench_memory(args: MemoryArgs) -> list[dict[str, Any]]:
    """Compile each variant, print a table of its memory, and return the rows."""
    names = tuple(PRESETS) if args.presets == ("all",) else args.presets
    rows = [row for name in names for row in measure_preset(find_preset(name), args)]
    timing.print_rows(rows)
    device = get_device_name()
    timing.save_rows(args.out, {"device": device, "jax": jax.__version__}, rows)
    return rows


def measure_preset(config: Config, args: MemoryArgs) -> Iterator[dict[str, Any]]:
    """Measure the variants of one preset, and yield a row for each."""
    size = args.batch_size or config.train.batch_size
    config = replace(config, train=replace(config.train, batch_size=size))
    side, channels = config.data.image_size or 28, config.data.channels or 1
    for setting, changed in list_variants(config) if args.settings else [("", config)]:
        found = measure_step_memory(changed, (side, side, channels))
        yield {
            "preset": config.preset,
            "batch": size,
            "setting": setting,
            "state GiB": found.alias / GIB,
            "temporaries GiB": found.temporaries / GIB,
            "peak GiB": found.peak / GIB,
            "peak without donation GiB": (found.peak + found.alias) / GIB,
        }


def list_variants(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield `config` unchanged, and with one setting changed at a time."""
    train = config.train
    yield "unchanged", config
    if train.batch_size % (4 * train.accumulate) == 0:
        yield (
            "accumulate x 4",
            replace(config, train=replace(train, accumulate=4 * train.accumulate)),
        )
    for remat in get_args(Remat):
        if remat != train.remat:
            yield f"remat {remat}", replace(config, train=replace(train, remat=remat))
    yield "bfloat16", replace(config, model=replace(config.model, compute_dtype="bfloat16"))
    yield "steps_per_call 4", replace(config, train=replace(train, steps_per_call=4))
