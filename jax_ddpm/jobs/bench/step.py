"""Training steps and sampling of diffusers' CIFAR-10 network in both frameworks, in turn."""

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
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.bench import timing
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.generate import generate_images, make_generate_fn
from jax_ddpm.jobs.training import compile_step
from jax_ddpm.parity.speed import Peer, Work, their_images, their_steps


@dataclass(frozen=True)
class StepArgs:
    """Training steps of google/ddpm-cifar10-32's network: forward, backward, clip, AdamW, EMA."""

    batch_size: int = 16
    image_size: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: compute_dtype here, autocast in PyTorch; parameters are float32 in both."""
    channels: tuple[int, ...] = (128, 256, 256, 256)
    """Channels of each level; the published network has 35.7 million parameters."""
    peers: tuple[Peer, ...] = ("eager", "channels_last", "compile")
    """How PyTorch runs; none: only ours is measured."""
    steps: int = 4
    """Steps per round."""
    rounds: int = 5
    steps_per_call: int = 1
    """Steps of ours that are scanned in one program."""
    out: Path | None = None
    """JSON file of the figures."""


@dataclass(frozen=True)
class SamplingArgs(StepArgs):
    """DDIM sampling with the same network; `steps` are the sampler's."""

    steps: int = 50


def work_of(args: StepArgs) -> Work:
    """What PyTorch is asked to do."""
    return Work(args.batch_size, args.image_size, args.channels, args.dtype, args.steps)


def bench_step(args: StepArgs) -> list[dict[str, Any]]:
    """Measure training steps, print a table, and return its rows."""
    config = config_of(args)
    contestants: dict[str, Callable[[], object]] = {"jax_ddpm": our_steps(config, args)}
    for peer in args.peers:
        contestants[peer] = their_steps(peer, work_of(args))
    return report(args, contestants, args.batch_size * args.steps)


def bench_sampling(args: SamplingArgs) -> list[dict[str, Any]]:
    """Measure sampling, print a table, and return its rows."""
    contestants: dict[str, Callable[[], object]] = {"jax_ddpm": our_images(config_of(args), args)}
    for peer in args.peers:
        contestants[peer] = their_images(peer, work_of(args))
    return report(args, contestants, args.batch_size)


def report(
    args: StepArgs, contestants: dict[str, Callable[[], object]], images: int
) -> list[dict[str, Any]]:
    """Time the contestants, print, save and return the rows."""
    rival = args.peers[0] if args.peers else None
    rows = timing.table(timing.in_turn(contestants, rounds=args.rounds), images, "images", rival)
    device = get_device_name()
    print(
        f"{args.batch_size} images of {args.image_size}x{args.image_size}x3, {args.dtype}, {device}"
    )
    timing.show(rows)
    timing.save(args.out, {"device": device, "jax": jax.__version__, "args": str(args)}, rows)
    return rows


def config_of(args: StepArgs) -> Config:
    """The preset diffusers-ddpm with the sizes asked for, all on one device."""
    config = find_preset("diffusers-ddpm")
    train = replace(
        config.train, batch_size=args.batch_size, steps_per_call=args.steps_per_call, parallel="jit"
    )
    channels: Any = {"block_out_channels": args.channels, "compute_dtype": args.dtype}
    return replace(config, train=train, model=replace(config.model, **channels))


def our_steps(config: Config, args: StepArgs) -> Callable[[], object]:
    """A call that takes `args.steps` steps of ours."""
    if args.steps % args.steps_per_call:
        raise UserError(
            f"--steps {args.steps} is no multiple of --steps-per-call {args.steps_per_call}"
        )
    shape = (args.image_size, args.image_size, 3)
    parts = build(config, shape)
    step, key = compile_step(config, parts), jax.random.key(0)
    state = jax.jit(parts.init_state)(key)
    per_call = () if args.steps_per_call == 1 else (args.steps_per_call,)
    pixels = np.random.default_rng(0).integers(0, 256, (*per_call, args.batch_size, *shape))
    batch = replicate(pixels.astype(np.uint8), "jit")

    def run() -> None:
        nonlocal state
        for _ in range(args.steps // args.steps_per_call):
            state, metrics = step(state, batch, key)
        jax.block_until_ready((state, metrics))

    return run


def our_images(config: Config, args: SamplingArgs) -> Callable[[], object]:
    """A call that draws one batch of ours."""
    shape = (args.image_size, args.image_size, 3)
    parts = build(config, shape)
    params = jax.jit(parts.network.init)(jax.random.key(0))
    settings = SampleConfig(sampler="ddim", num_steps=args.steps, frames=1)
    generate = make_generate_fn(parts, settings, shape)

    def run() -> object:
        return list(generate_images(generate, params, args.batch_size, batch_size=args.batch_size))

    return run
