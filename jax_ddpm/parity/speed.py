"""The PyTorch side of the benchmarks: diffusers' network, a training step, and sampling.

PyTorch and diffusers are imported only when a contestant is made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax

from jax_ddpm.parity.packages import require_packages

Peer = Literal["eager", "channels_last", "compile"]


@dataclass(frozen=True)
class Work:
    """The work of one call, the same in both frameworks."""

    batch_size: int
    image_size: int
    channels: tuple[int, ...]
    """Channels at each resolution; the second resolution has attention."""
    dtype: str
    steps: int

    @property
    def down_block_types(self) -> tuple[str, ...]:
        """diffusers' names of the down blocks."""
        return ("DownBlock2D", "AttnDownBlock2D", *["DownBlock2D"] * (len(self.channels) - 2))

    @property
    def up_block_types(self) -> tuple[str, ...]:
        """diffusers' names of the up blocks."""
        return (*["UpBlock2D"] * (len(self.channels) - 2), "AttnUpBlock2D", "UpBlock2D")


def require_peers(peers: Sequence[Peer]) -> None:
    """Raise UserError if there are peers but PyTorch or diffusers is missing."""
    if peers:
        require_packages(f"--peers {' '.join(peers)}", "torch", "diffusers")


def make_their_network(peer: Peer, work: Work) -> Any:
    """Make diffusers' UNet2DModel as in google/ddpm-cifar10-32, on the device."""
    import torch
    from diffusers import UNet2DModel

    torch.set_float32_matmul_precision("high")  # TF32 on accelerators that have it, as in XLA
    torch.backends.cudnn.benchmark = True
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    model_class: Any = UNet2DModel
    model = model_class(
        sample_size=work.image_size,
        block_out_channels=work.channels,
        down_block_types=work.down_block_types,
        up_block_types=work.up_block_types,
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


def autocast(work: Work, device: str) -> Any:
    """The autocast context for bfloat16, if the work asks for it."""
    import torch

    return torch.autocast(device, torch.bfloat16, enabled=work.dtype == "bfloat16")


def make_their_steps(peer: Peer, work: Work) -> Callable[[], object]:
    """Make a function that takes `work.steps` training steps in PyTorch."""
    import torch

    model = make_their_network(peer, work)
    params = list(model.parameters())
    device = params[0].device
    averages = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=1e-4, fused=device.type == "cuda")
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, device=device), 0)
    shape = (work.batch_size, 3, work.image_size, work.image_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    def step() -> None:
        x_0 = pixels.float() / 127.5 - 1
        noise, t = torch.randn_like(x_0), torch.randint(0, 1000, shape[:1], device=device)
        a = signal[t][:, None, None, None]
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
        if peer != "eager":
            x_t = x_t.to(memory_format=torch.channels_last)
        with autocast(work, device.type):
            eps = model(x_t, t).sample
        loss = torch.nn.functional.mse_loss(eps.float(), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, params, 1e-4)

    def run() -> None:
        for _ in range(work.steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def make_their_sampling(peer: Peer, work: Work) -> Callable[[], object]:
    """Make a function that draws one batch with DDIMScheduler, as diffusers' pipeline does."""
    import torch
    from diffusers import DDIMScheduler

    model = make_their_network(peer, work).eval()
    device = next(model.parameters()).device
    scheduler: Any = DDIMScheduler(clip_sample=True)
    scheduler.set_timesteps(work.steps)
    shape = (work.batch_size, 3, work.image_size, work.image_size)

    @torch.no_grad()
    def run() -> object:
        x_t = torch.randn(shape, device=device)
        if peer != "eager":
            x_t = x_t.to(memory_format=torch.channels_last)
        for t in scheduler.timesteps:
            with autocast(work, device.type):
                eps = model(x_t, t.to(device)).sample
            x_t = scheduler.step(eps.float(), t, x_t).prev_sample
        return ((x_t / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu().numpy()

    return run
