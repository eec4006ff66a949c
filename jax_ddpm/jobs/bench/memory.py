"""What a training step takes of a device's memory, as the compiled program says."""

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
    """Memory of a training step: of one preset with and without each setting, or of presets."""

    presets: tuple[str, ...] = ("fashion-cpu",)
    """Which presets; all: every one."""
    settings: bool = True
    """Also with each of the settings that change the memory."""
    batch_size: int | None = None
    """Images per device; None: the preset's."""
    out: Path | None = None
    """JSON file of the figures."""


def bench_memory(args: MemoryArgs) -> list[dict[str, Any]]:
    """Compile, print a table, and return its rows."""
    names = tuple(PRESETS) if args.presets == ("all",) else args.presets
    rows = [row for name in names for row in rows_of(find_preset(name), args)]
    timing.show(rows)
    device = get_device_name()
    timing.save(args.out, {"device": device, "jax": jax.__version__}, rows)
    return rows


def rows_of(config: Config, args: MemoryArgs) -> Iterator[dict[str, Any]]:
    """The rows of one preset."""
    size = args.batch_size or config.train.batch_size
    config = replace(config, train=replace(config.train, batch_size=size))
    side, channels = config.data.image_size or 28, config.data.channels or 1
    for setting, changed in variants(config) if args.settings else [("", config)]:
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


def variants(config: Config) -> Iterator[tuple[str, Config]]:
    """`config` as it is, and with one setting changed at a time."""
    train = config.train
    yield "as it is", config
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
