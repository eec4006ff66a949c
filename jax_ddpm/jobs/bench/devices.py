"""Weak scaling on simulated devices: what a step costs each device, with pmap and on a mesh."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ddpm.config.run import Config
from jax_ddpm.devices.cost import measure_cost
from jax_ddpm.devices.layout import Layout, Mode, count_devices, make_state
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.bench import timing
from jax_ddpm.jobs.bench.networks import NETWORKS, NetworkName, make_config
from jax_ddpm.jobs.build import Parts, build
from jax_ddpm.jobs.train_setup import build_step, compile_step

MODES: tuple[Mode, ...] = ("pmap", "mesh")
MIB, GIGA = 2**20, 1e9


@dataclass(frozen=True)
class DevicesArgs:
    """Operations and bytes of a step on each of several simulated CPU devices, and its time.

    Every device has the same number of images. The devices share the machine's cores, so the time
    of a step grows with their number; what can be compared are pmap and mesh, and the counts.
    """

    network: NetworkName = "fashion-cpu"
    """Which network."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of devices to simulate. Each is measured in a process of its own."""
    batch_size: int = 16
    """Images per device."""
    steps: int = 4
    """Steps per round."""
    rounds: int = 5
    """Number of times that each mode is measured."""
    out: Path | None = None
    """JSON file to write the results to."""


def bench_devices(args: DevicesArgs) -> list[dict[str, Any]]:
    """Measure each number of devices, print a table, and return its rows."""
    if args.devices == (count_devices("pmap"),):
        rows = measure_here(args)
    else:
        rows = [row for count in args.devices for row in measure_apart(args, count)]
    timing.print_rows(rows)
    about = {"network": args.network, "batch per device": args.batch_size, "jax": jax.__version__}
    timing.save_rows(args.out, about, rows)
    return rows


def measure_apart(args: DevicesArgs, count: int) -> list[dict[str, Any]]:
    """Measure in a process with `count` simulated devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        words = ["bench", "devices", "--network", args.network, "--devices", count]
        words += ["--batch-size", args.batch_size, "--steps", args.steps]
        words += ["--rounds", args.rounds, "--out", out]
        command = [sys.executable, "-m", "jax_ddpm", *map(str, words)]
        if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode:
            raise UserError(f"the measurement with {count} devices failed: see above")
        rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    print(f"{count} devices: measured", flush=True)
    return rows


def measure_here(args: DevicesArgs) -> list[dict[str, Any]]:
    """Measure both modes on all devices of this process."""
    subject, count = NETWORKS[args.network], args.devices[0]
    config = make_config(subject, args.batch_size * count, "float32")
    parts = build(config, subject.image_shape)
    configs = {mode: replace(config, train=replace(config.train, parallel=mode)) for mode in MODES}
    contestants: dict[str, Callable[[], object]] = {
        mode: make_steps(changed, parts, subject.image_shape, args.steps)
        for mode, changed in configs.items()
    }
    times = timing.time_in_turn(contestants, rounds=args.rounds)
    return [
        {"devices": count, "mode": mode, "images": config.train.batch_size}
        | describe_cost(configs[mode], parts, subject.image_shape)
        | {"s/step": float(np.median(times[mode])) / args.steps}
        for mode in MODES
    ]


def describe_cost(
    config: Config, parts: Parts, image_shape: tuple[int, int, int]
) -> dict[str, float]:
    """Compile the step of `config`, and describe its cost on each device."""
    size, key = config.train.batch_size, jax.eval_shape(lambda: jax.random.key(0))
    pixels = jax.ShapeDtypeStruct((size, *image_shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct((size,), jnp.int32)
    state, mode = jax.eval_shape(parts.init_state, key), config.train.parallel
    assert mode != "auto"
    cost = measure_cost(
        lambda axis_name: build_step(config, parts, axis_name), mode, state, (pixels, labels), key
    )
    return {
        "GFLOP/device": cost.operations / GIGA,
        "GB accessed/device": cost.bytes_accessed / GIGA,
        "MiB exchanged": cost.bytes_exchanged / MIB,
    }


def make_steps(
    config: Config, parts: Parts, image_shape: tuple[int, int, int], steps: int
) -> Callable[[], object]:
    """Make a function that takes `steps` training steps on all devices."""
    mode, size, key = config.train.parallel, config.train.batch_size, jax.random.key(0)
    assert mode != "auto"
    step = compile_step(config, parts)
    state = make_state(parts.start_state, parts.network.init(key), Layout(mode))
    numbers = np.random.default_rng(0)
    pixels = numbers.integers(0, 256, (size, *image_shape)).astype(np.uint8)
    batch = pixels, (np.arange(size) % (parts.num_labels or 1)).astype(np.int32)

    def run() -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, batch, key)
        jax.block_until_ready((state, metrics))

    return run
