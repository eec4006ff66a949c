"""The network of B. Pulfer's DDPM tutorial, with its parameter names."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def interleaved_embedding(n: int, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[n,dim]: sine and cosine of t / 10000 ** (4 * p / dim), side by side, for each pair p."""
    # The exponent is twice the usual one: the tutorial uses every other one of `dim` frequencies.
    frequencies = torch.tensor([10000.0 ** (-2 * j / dim) for j in range(0, dim, 2)], dtype=dtype)
    angles = torch.arange(n, dtype=dtype)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]


class _Block(nn.Module):
    """x[B,in,S,S] -> [B,out,S,S]: a norm over the whole image and two convolutions."""

    def __init__(self, in_size: int, size: int, side: int, normalize: bool = True):
        super().__init__()
        self.ln = nn.LayerNorm((in_size, side, side))  # has parameters even if it is unused
        self.conv1 = nn.Conv2d(in_size, size, 3, padding=1)
        self.conv2 = nn.Conv2d(size, size, 3, padding=1)
        self.normalize = normalize

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln(x) if self.normalize else x
        return F.silu(self.conv2(F.silu(self.conv1(x))))


def _blocks(sizes: tuple[int, ...], side: int, normalize_last: bool = True) -> nn.Sequential:
    """Blocks from sizes[0] to sizes[1] channels, and so on."""
    last = len(sizes) - 2
    pairs = enumerate(pairwise(sizes))
    return nn.Sequential(*(_Block(a, b, side, normalize_last or j < last) for j, (a, b) in pairs))


def _shift(dim: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, size), nn.SiLU(), nn.Linear(size, size))


class PulferUNet(nn.Module):
    """MyUNet: resolutions of 28, 14, 7 and 3 pixels; t shifts the input of each one's blocks."""

    def __init__(self, n_steps: int = 1000, time_emb_dim: int = 100):
        """The time embedding, [n_steps,time_emb_dim], is not trained."""
        super().__init__()
        self.time_embed = nn.Embedding(n_steps, time_emb_dim)
        self.time_embed.weight.data = interleaved_embedding(n_steps, time_emb_dim)
        self.time_embed.requires_grad_(False)
        shifts = {"1": 1, "2": 10, "3": 20, "_mid": 40, "4": 80, "5": 40, "_out": 20}
        for end, size in shifts.items():
            self.add_module(f"te{end}", _shift(time_emb_dim, size))
        self.b1, self.down1 = _blocks((1, 10, 10, 10), 28), nn.Conv2d(10, 10, 4, 2, 1)
        self.b2, self.down2 = _blocks((10, 20, 20, 20), 14), nn.Conv2d(20, 20, 4, 2, 1)
        self.b3 = _blocks((20, 40, 40, 40), 7)
        self.down3 = nn.Sequential(nn.Conv2d(40, 40, 2), nn.SiLU(), nn.Conv2d(40, 40, 4, 2, 1))
        self.b_mid = _blocks((40, 20, 20, 40), 3)
        up = nn.ConvTranspose2d(40, 40, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(40, 40, 2)
        self.up1 = nn.Sequential(*up)
        self.b4, self.up2 = _blocks((80, 40, 20, 20), 7), nn.ConvTranspose2d(20, 20, 4, 2, 1)
        self.b5, self.up3 = _blocks((40, 20, 10, 10), 14), nn.ConvTranspose2d(10, 10, 4, 2, 1)
        self.b_out = _blocks((20, 10, 10, 10), 28, normalize_last=False)
        self.conv_out = nn.Conv2d(10, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x[B,1,28,28], t[B] -> [B,1,28,28]."""
        temb = self.time_embed(t)

        def level(end: str, x: Tensor) -> Tensor:
            shift = self.get_submodule(f"te{end}")(temb)[:, :, None, None]
            return self.get_submodule(f"b{end}")(x + shift)

        skip_1 = level("1", x)
        skip_2 = level("2", self.down1(skip_1))
        skip_3 = level("3", self.down2(skip_2))
        x = level("_mid", self.down3(skip_3))
        x = level("4", torch.cat([skip_3, self.up1(x)], dim=1))
        x = level("5", torch.cat([skip_2, self.up2(x)], dim=1))
        return self.conv_out(level("_out", torch.cat([skip_1, self.up3(x)], dim=1)))
