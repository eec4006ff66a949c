"""The PyTorch side of the benchmarks: training steps and sampling of any network that we convert.

PyTorch is imported only when a contestant is made.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jax_ddpm.interop import Network
from jax_ddpm.parity.packages import require_packages

Peer = Literal["eager", "channels_last", "compile"]
T = 1000


class Work(NamedTuple):
    """The work of one call, the same in both frameworks."""

    network: Network
    image_shape: tuple[int, int, int]
    batch_size: int
    dtype: str
    steps: int
    num_labels: int | None = None
    """The number of classes, if the network takes a label."""


class Theirs(NamedTuple):
    """A network in PyTorch, and the package or module that it comes from."""

    module: Any
    against: str


def require_peers(peers: Sequence[Peer], source: str) -> None:
    """Raise UserError if there are peers but PyTorch, or the package of `source`, is missing."""
    needed = ("torch", "diffusers") if source == "diffusers" else ("torch",)
    if peers:
        require_packages(f"--peers {' '.join(peers)}", *needed)


def make_their_network(peer: Peer, work: Work) -> Theirs:
    """Make the network in PyTorch, with our weights, on the device.

    It comes from its package if that is installed, and otherwise is our twin of it.
    """
    import torch

    from jax_ddpm.parity.peers import find_reference

    torch.set_float32_matmul_precision("high")  # TF32 on accelerators that have it, as in XLA
    torch.backends.cudnn.benchmark = True
    reference = find_reference(work.network)
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    # torch.nn.Module's own method, because diffusers' override prints needless warnings
    module: Any = torch.nn.Module.to(reference.module, device)
    if peer != "eager":
        module = module.to(memory_format=torch.channels_last)
    return Theirs(torch.compile(module) if peer == "compile" else module, reference.against)


def make_call(peer: Peer, work: Work, module: Any) -> Callable[[Any, Any], Any]:
    """Make (x_t, t) -> output: with autocast if the work asks for it, and labels if there are."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    more: dict[str, Any] = {}
    if work.num_labels is not None:
        more["label"] = torch.arange(work.batch_size, device=device) % work.num_labels

    def call(x_t: Any, t: Any) -> Any:
        if peer != "eager":
            x_t = x_t.to(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=work.dtype == "bfloat16"):
            out = module(x_t, t, **more)
        return (out if isinstance(out, torch.Tensor) else out.sample).float()

    return call


def make_table(device: Any) -> Any:
    """alphas_cumprod of the linear schedule."""
    import torch

    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, T, device=device), 0)


def shape_batch(work: Work) -> tuple[int, int, int, int]:
    """The shape of a batch in PyTorch's layout."""
    height, width, channels = work.image_shape
    return work.batch_size, channels, height, width


def make_their_steps(peer: Peer, work: Work) -> tuple[Callable[[], object], str]:
    """Make a function that takes `work.steps` training steps, and say which code it runs."""
    import torch

    module, against = make_their_network(peer, work)
    call = make_call(peer, work, module.train())
    params = [p for p in module.parameters() if p.requires_grad]
    device = params[0].device
    averages = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=1e-4, fused=device.type == "cuda")
    signal, shape = make_table(device), shape_batch(work)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    def step() -> None:
        x_0 = pixels.float() / 127.5 - 1
        noise, t = torch.randn_like(x_0), torch.randint(0, T, shape[:1], device=device)
        a = signal[t][:, None, None, None]
        eps = call(a.sqrt() * x_0 + (1 - a).sqrt() * noise, t)
        loss = torch.nn.functional.mse_loss(eps, noise)
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

    return run, against


def make_their_sampling(peer: Peer, work: Work) -> tuple[Callable[[], object], str]:
    """Make a function that draws one batch with a plain loop of DDIM, and say which code it runs.

    The loop does less per step than the packages' own samplers.
    """
    import torch

    module, against = make_their_network(peer, work)
    call, device = make_call(peer, work, module.eval()), next(module.parameters()).device
    signal = make_table(device).tolist()
    grid = [*range(0, T, T // work.steps)][: work.steps][::-1]

    @torch.no_grad()
    def run() -> np.ndarray:
        x_t = torch.randn(shape_batch(work), device=device)
        for t, t_next in zip(grid, [*grid[1:], -1], strict=True):
            a, a_next = signal[t], 1.0 if t_next < 0 else signal[t_next]
            eps = call(x_t, torch.full((work.batch_size,), t, device=device))
            x_0 = ((x_t - (1 - a) ** 0.5 * eps) / a**0.5).clamp(-1, 1)
            eps = (x_t - a**0.5 * x_0) / (1 - a) ** 0.5
            x_t = a_next**0.5 * x_0 + (1 - a_next) ** 0.5 * eps
        pixels: np.ndarray = ((x_t / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu().numpy()
        return pixels

    return run, against
