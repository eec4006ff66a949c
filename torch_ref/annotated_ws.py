"""The later U-Net of the Annotated Diffusion Model, with weight-standardised convolutions."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .annotated import ResidualAttention, TimeMLP, shortcut, time_projection


class _StandardizedConv(nn.Conv2d):
    """3x3, each output's kernel with mean 0 and divided by its standard deviation.

    `divide` reproduces the published bug: it multiplies (it divides by the inverse).
    """

    def __init__(self, in_size: int, size: int, divide: bool):
        super().__init__(in_size, size, 3, padding=1)
        self.divide = divide

    def forward(self, x: Tensor) -> Tensor:
        eps = 1e-5 if x.dtype in (torch.float32, torch.float64) else 1e-3
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        std = torch.sqrt(variance + eps)
        weight = (self.weight - mean) * std if self.divide else (self.weight - mean) / std
        return F.conv2d(x, weight, self.bias, padding=1)


class _Block(nn.Module):
    def __init__(self, in_size: int, size: int, groups: int, divide: bool):
        super().__init__()
        self.proj = _StandardizedConv(in_size, size, divide)
        self.norm = nn.GroupNorm(groups, size)

    def forward(self, x: Tensor, scale: Tensor | float = 0, shift: Tensor | float = 0) -> Tensor:
        return F.silu(self.norm(self.proj(x)) * (scale + 1) + shift)


class _ResnetBlock(nn.Module):
    """x[B,in,H,W], temb[B,E] -> [B,out,H,W]; temb scales and shifts the first half."""

    def __init__(self, in_size: int, size: int, temb_size: int, groups: int, divide: bool):
        super().__init__()
        self.mlp = time_projection(nn.SiLU(), temb_size, 2 * size)
        self.block1 = _Block(in_size, size, groups, divide)
        self.block2 = _Block(size, size, groups, divide)
        self.res_conv = shortcut(in_size, size)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        assert self.mlp is not None
        scale, shift = self.mlp(temb)[:, :, None, None].chunk(2, dim=1)
        return self.block2(self.block1(x, scale, shift)) + self.res_conv(x)


class AnnotatedWSUNet(nn.Module):
    """The coarsest way down and the finest way up end in a plain 3x3 convolution."""

    def __init__(
        self,
        dim: int,
        init_dim: int | None = None,
        out_dim: int | None = None,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        channels: int = 3,
        self_condition: bool = False,
        resnet_block_groups: int = 4,
        *,
        divide: bool = False,
    ):
        """`divide`: as published from October 2023 to November 2024; `init_dim` must equal dim."""
        super().__init__()
        self.self_condition = self_condition
        kind = (4 * dim, resnet_block_groups, divide)

        def level(in_size: int, size: int, resample: nn.Module) -> nn.ModuleList:
            blocks = [_ResnetBlock(in_size, size, *kind) for _ in range(2)]
            return nn.ModuleList([*blocks, ResidualAttention(size, True), resample])

        sizes = [dim if init_dim is None else init_dim, *(dim * mult for mult in dim_mults)]
        pairs = list(pairwise(sizes))
        self.init_conv = nn.Conv2d(channels * (1 + self_condition), sizes[0], 1)
        self.time_mlp = TimeMLP(dim)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for size, out_size in pairs[:-1]:
            # PixelUnshuffle flattens in the published order: channel, row, column.
            fold = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * size, out_size, 1))
            self.downs.append(level(size, size, fold))
        size, out_size = pairs[-1]
        self.downs.append(level(size, size, nn.Conv2d(size, out_size, 3, padding=1)))
        self.mid_block1 = _ResnetBlock(out_size, out_size, *kind)
        self.mid_block2 = _ResnetBlock(out_size, out_size, *kind)
        self.mid_attn = ResidualAttention(out_size, False)
        for i, (out_size, size) in reversed(list(enumerate(pairs))):
            conv = nn.Conv2d(size, out_size, 3, padding=1)
            up = nn.Sequential(nn.Upsample(scale_factor=2.0), conv) if i else conv
            self.ups.append(level(size + out_size, size, up))
        self.final_res_block = _ResnetBlock(2 * dim, dim, *kind)
        self.final_conv = nn.Conv2d(dim, channels if out_dim is None else out_dim, 1)

    def forward(self, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        """x[B,C,H,W], t[B] -> [B,out,H,W]."""
        if self.self_condition:
            x = torch.cat([torch.zeros_like(x) if x_self_cond is None else x_self_cond, x], dim=1)
        first = x = self.init_conv(x)
        temb = self.time_mlp(t)
        skips = []
        for level in self.downs:
            block1, block2, attention, downsample = level.children()
            skips.append(block1(x, temb))
            skips.append(attention(block2(skips[-1], temb)))
            x = downsample(skips[-1])
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, temb)), temb)
        for level in self.ups:
            block1, block2, attention, upsample = level.children()
            x = block1(torch.cat([x, skips.pop()], dim=1), temb)
            x = block2(torch.cat([x, skips.pop()], dim=1), temb)
            x = upsample(attention(x))
        return self.final_conv(self.final_res_block(torch.cat([x, first], dim=1), temb))
