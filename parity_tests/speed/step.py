"""Training steps and sampling of diffusers' CIFAR-10 network in both frameworks, in turn."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jax_ddpm.build import build
from jax_ddpm.config import Config
from jax_ddpm.drawing import generate_images, make_generate_fn
from jax_ddpm.errors import UserError
from jax_ddpm.presets import find_preset
from jax_ddpm.sample_config import SampleConfig
from jax_ddpm.training.job import compiled_step
from speed import timing

Peer = Literal["eager", "channels_last", "compile"]


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


def bench_step(args: StepArgs) -> list[dict[str, Any]]:
    """Measure training steps, print a table, and return its rows."""
    config = config_of(args)
    contestants: dict[str, Callable[[], object]] = {"jax_ddpm": our_steps(config, args)}
    for peer in args.peers:
        contestants[peer] = their_steps(peer, args)
    return report(args, contestants, args.batch_size * args.steps)


def bench_sampling(args: SamplingArgs) -> list[dict[str, Any]]:
    """Measure sampling, print a table, and return its rows."""
    contestants: dict[str, Callable[[], object]] = {"jax_ddpm": our_images(config_of(args), args)}
    for peer in args.peers:
        contestants[peer] = their_images(peer, args)
    return report(args, contestants, args.batch_size)


def report(
    args: StepArgs, contestants: dict[str, Callable[[], object]], images: int
) -> list[dict[str, Any]]:
    """Time the contestants, print, save and return the rows."""
    rival = args.peers[0] if args.peers else None
    rows = timing.table(timing.in_turn(contestants, rounds=args.rounds), images, "images", rival)
    device = jax.devices()[0].device_kind
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
    step, key = compiled_step(config, parts), jax.random.key(0)
    state = jax.jit(parts.init_state)(key)
    per_call = () if args.steps_per_call == 1 else (args.steps_per_call,)
    pixels = np.random.default_rng(0).integers(0, 256, (*per_call, args.batch_size, *shape))
    batch = jax.device_put(pixels.astype(np.uint8))

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


def their_network(peer: Peer, args: StepArgs) -> Any:
    """diffusers' UNet2DModel in the layout of google/ddpm-cifar10-32, and its device."""
    import torch
    from diffusers import UNet2DModel

    torch.set_float32_matmul_precision("high")  # as XLA does: TF32 on accelerators that have it
    torch.backends.cudnn.benchmark = True
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    levels = len(args.channels)
    kind: Any = UNet2DModel
    model = kind(
        sample_size=args.image_size,
        block_out_channels=args.channels,
        down_block_types=["DownBlock2D", "AttnDownBlock2D", *["DownBlock2D"] * (levels - 2)],
        up_block_types=[*["UpBlock2D"] * (levels - 2), "AttnUpBlock2D", "UpBlock2D"],
        layers_per_block=2,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
    ).to(device)
    if peer != "eager":
        model = model.to(memory_format=torch.channels_last)
    return torch.compile(model) if peer == "compile" else model


def autocast(args: StepArgs, device: str) -> Any:
    """Mixed precision as asked for."""
    import torch

    return torch.autocast(device, torch.bfloat16, enabled=args.dtype == "bfloat16")


def their_steps(peer: Peer, args: StepArgs) -> Callable[[], object]:
    """A call that takes `args.steps` steps in PyTorch, with the same work in each."""
    import torch

    model = their_network(peer, args)
    params = list(model.parameters())
    device = params[0].device
    averages = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=1e-4, fused=device.type == "cuda")
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, device=device), 0)
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    def step() -> None:
        x_0 = pixels.float() / 127.5 - 1
        noise, t = torch.randn_like(x_0), torch.randint(0, 1000, shape[:1], device=device)
        a = signal[t][:, None, None, None]
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
        if peer != "eager":
            x_t = x_t.to(memory_format=torch.channels_last)
        with autocast(args, device.type):
            eps = model(x_t, t).sample
        loss = torch.nn.functional.mse_loss(eps.float(), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, params, 1e-4)

    def run() -> None:
        for _ in range(args.steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def their_images(peer: Peer, args: SamplingArgs) -> Callable[[], object]:
    """A call that draws one batch with diffusers' DDIMScheduler, as its pipeline does."""
    import torch
    from diffusers import DDIMScheduler

    model = their_network(peer, args).eval()
    device = next(model.parameters()).device
    scheduler: Any = DDIMScheduler(clip_sample=True)
    scheduler.set_timesteps(args.steps)
    shape = (args.batch_size, 3, args.image_size, args.image_size)

    @torch.no_grad()
    def run() -> object:
        x_t = torch.randn(shape, device=device)
        if peer != "eager":
            x_t = x_t.to(memory_format=torch.channels_last)
        for t in scheduler.timesteps:
            with autocast(args, device.type):
                eps = model(x_t, t.to(device)).sample
            x_t = scheduler.step(eps.float(), t, x_t).prev_sample
        return ((x_t / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu().numpy()

    return run
