"""Time training steps and sampling of diffusers' CIFAR-10 network, in JAX and PyTorch by turns."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jax_ddpm.config.presets import find_preset
from jax_ddpm.config.run import Config
from jax_ddpm.config.sample import SampleConfig
from jax_ddpm.devices.layout import get_device_name, replicate
from jax_ddpm.errors import UserError, require
from jax_ddpm.jobs.bench import timing
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.generate import generate_images, make_generate_fn
from jax_ddpm.jobs.train_setup import compile_step
from jax_ddpm.parity.speed import (
    Peer,
    Work,
    make_their_sampling,
    make_their_steps,
    require_peers,
)


@dataclass(frozen=True)
class StepArgs:
    """Training steps of google/ddpm-cifar10-32's network: forward, backward, clip, AdamW, EMA."""

    batch_size: int = 16
    """Images per step."""
    image_size: int = 32
    """Side of the images in pixels."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: compute_dtype in JAX, autocast in PyTorch. Parameters are float32 in both."""
    channels: tuple[int, ...] = (128, 256, 256, 256)
    """Channels at each resolution. The default is the published network, with 35.7 million
    parameters."""
    peers: tuple[Peer, ...] = ("eager", "channels_last", "compile")
    """How PyTorch runs the network, one contestant each. None: measure only JAX."""
    steps: int = 4
    """Steps per round."""
    rounds: int = 5
    """Number of times that each contestant is measured."""
    steps_per_call: int = 1
    """Steps that JAX scans in one program."""
    out: Path | None = None
    """JSON file to write the results to."""


@dataclass(frozen=True)
class SamplingArgs(StepArgs):
    """DDIM sampling with the same network; --steps is the number of network evaluations."""

    steps: int = 50
    """Sampling steps, of one network evaluation each."""


def make_work(args: StepArgs) -> Work:
    """Describe the work of one call. Raises UserError for a network of a single resolution."""
    enough = len(args.channels) >= 2  # the second one has attention
    require(enough, "--channels", args.channels, "at least two numbers, one per resolution")
    return Work(args.batch_size, args.image_size, args.channels, args.dtype, args.steps)


def bench_step(args: StepArgs) -> list[dict[str, Any]]:
    """Measure training steps, print a table, and return its rows."""
    require_peers(args.peers)
    contestants: dict[str, Callable[[], object]] = {"jax_ddpm": make_our_steps(args)}
    for peer in args.peers:
        contestants[peer] = make_their_steps(peer, make_work(args))
    return report_times(args, contestants, args.batch_size * args.steps)


def bench_sampling(args: SamplingArgs) -> list[dict[str, Any]]:
    """Measure sampling, print a table, and return its rows."""
    require_peers(args.peers)
    contestants: dict[str, Callable[[], object]] = {"jax_ddpm": make_our_sampling(args)}
    for peer in args.peers:
        contestants[peer] = make_their_sampling(peer, make_work(args))
    return report_times(args, contestants, args.batch_size)


def report_times(
    args: StepArgs, contestants: dict[str, Callable[[], object]], images: int
) -> list[dict[str, Any]]:
    """Time the contestants; print, save and return the rows."""
    rival = args.peers[0] if args.peers else None
    times = timing.time_in_turn(contestants, rounds=args.rounds)
    rows = timing.make_rows(times, images, "images", rival)
    device, side = get_device_name(), args.image_size
    print(f"{args.batch_size} images of {side}x{side}x3, {args.dtype}, {device}")
    timing.print_rows(rows)
    timing.save_rows(args.out, {"device": device, "jax": jax.__version__, "args": str(args)}, rows)
    return rows


def make_config(args: StepArgs) -> Config:
    """Change the preset diffusers-ddpm to the requested sizes, on one device."""
    config = find_preset("diffusers-ddpm")
    train = replace(
        config.train, batch_size=args.batch_size, steps_per_call=args.steps_per_call, parallel="jit"
    )
    work = make_work(args)
    changes: dict[str, Any] = {
        "block_out_channels": work.channels,
        "down_block_types": work.down_block_types,
        "up_block_types": work.up_block_types,
        "compute_dtype": work.dtype,
    }
    return replace(config, train=train, model=replace(config.model, **changes))


def make_our_steps(args: StepArgs) -> Callable[[], object]:
    """Make a function that takes `args.steps` training steps in JAX."""
    if args.steps % args.steps_per_call:
        raise UserError(
            f"--steps {args.steps} is not a multiple of --steps-per-call {args.steps_per_call}"
        )
    config, shape = make_config(args), (args.image_size, args.image_size, 3)
    parts = build(config, shape)
    step, key = compile_step(config, parts), jax.random.key(0)
    state = parts.init_state(key)
    per_call = () if args.steps_per_call == 1 else (args.steps_per_call,)
    pixels = np.random.default_rng(0).integers(0, 256, (*per_call, args.batch_size, *shape))
    batch = replicate(pixels.astype(np.uint8), "jit")

    def run() -> None:
        nonlocal state
        for _ in range(args.steps // args.steps_per_call):
            state, metrics = step(state, batch, key)
        jax.block_until_ready((state, metrics))

    return run


def make_our_sampling(args: SamplingArgs) -> Callable[[], object]:
    """Make a function that draws one batch in JAX."""
    shape = (args.image_size, args.image_size, 3)
    parts = build(make_config(args), shape)
    params = parts.network.init(jax.random.key(0))
    settings = SampleConfig(sampler="ddim", num_steps=args.steps, frames=1)
    generate = make_generate_fn(parts, settings, shape)

    def run() -> object:
        return list(generate_images(generate, params, args.batch_size, batch_size=args.batch_size))

    return run
