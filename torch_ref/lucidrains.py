"""The U-Net of lucidrains' denoising_diffusion_pytorch 2, with its parameter names."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEMORIES = 4  # learned keys and values of each attention, in addition to those of the image


class _RMSNorm(nn.Module):
    """Scales each pixel's vector in x[B,C,H,W] to length sqrt(C), times a learned factor g."""

    def __init__(self, size: int):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, size, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        length = x.square().sum(dim=1, keepdim=True).clamp(min=1e-24).sqrt()
        return x / length * self.g * x.shape[1] ** 0.5


class _Fourier(nn.Module):
    """t[B] -> [B,1+dim]: t, then sines and cosines at random or learned frequencies."""

    def __init__(self, dim: int, learned: bool):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(dim // 2), requires_grad=learned)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.weights * 2 * math.pi
        return torch.cat([t[:, None], angles.sin(), angles.cos()], dim=1)


class _Sinusoidal(nn.Module):
    """t[B] -> [B,dim]: sines, then cosines, at dim // 2 frequencies from 1 to 1 / theta."""

    def __init__(self, dim: int, theta: float):
        super().__init__()
        self.count, self.theta = dim // 2, theta

    def forward(self, t: Tensor) -> Tensor:
        index = torch.arange(self.count, dtype=t.dtype, device=t.device)
        angles = t[:, None] * torch.exp(index * (-math.log(self.theta) / (self.count - 1)))
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class _Half(nn.Module):
    """Half of a block: convolution, norm, scale and shift, SiLU."""

    def __init__(self, in_size: int, size: int, dropout: float = 0.0):
        super().__init__()
        self.proj = nn.Conv2d(in_size, size, 3, padding=1)
        self.norm = _RMSNorm(size)
        self.dropout = dropout

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        x = self.norm(self.proj(x))
        if modulation is not None:
            scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
            x = x * (1 + scale) + shift
        return F.dropout(F.silu(x), self.dropout, self.training)


class _Block(nn.Module):
    """x[B,in,H,W], temb[B,E] -> [B,out,H,W]."""

    def __init__(self, in_size: int, size: int, temb_size: int, dropout: float):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(temb_size, 2 * size))
        self.block1 = _Half(in_size, size, dropout)
        self.block2 = _Half(size, size)
        self.res_conv = nn.Conv2d(in_size, size, 1) if in_size != size else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return self.block2(self.block1(x, self.mlp(temb))) + self.res_conv(x)


class _Attention(nn.Module):
    """Residual attention over the pixels of x[B,C,H,W] and MEMORIES learned positions."""

    def __init__(self, size: int, heads: int, head_size: int, full: bool, flash: bool):
        """`full`: softmax over all pairs, otherwise linear attention; `flash`: a fused kernel."""
        super().__init__()
        self.heads, self.full, self.flash = heads, full, flash
        inner, shape = heads * head_size, (MEMORIES, head_size)
        self.norm = _RMSNorm(size)
        self.mem_kv = nn.Parameter(torch.randn(2, heads, *(shape if full else shape[::-1])))
        self.to_qkv = nn.Conv2d(size, 3 * inner, 1, bias=False)
        out = nn.Conv2d(inner, size, 1)
        self.to_out = out if full else nn.Sequential(out, _RMSNorm(size))

    def forward(self, x: Tensor) -> Tensor:
        b, _, height, width = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(b, 3, self.heads, -1, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(dim=1)  # [B,heads,HW,D]
        memories = self.mem_kv if self.full else self.mem_kv.transpose(-1, -2)
        k, v = (
            torch.cat([m.expand(b, -1, -1, -1), y], dim=2)
            for m, y in zip(memories, (k, v), strict=True)
        )
        out = self._softmax(q, k, v) if self.full else self._linear(q, k, v)  # [B,heads,HW,D]
        return x + self.to_out(out.transpose(-1, -2).reshape(b, -1, height, width))

    def _softmax(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.flash:
            return F.scaled_dot_product_attention(q, k, v)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        return scores.softmax(dim=-1) @ v

    def _linear(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        context = k.softmax(dim=2).transpose(-1, -2) @ v  # [B,heads,D,D]
        return q.softmax(dim=-1) * q.shape[-1] ** -0.5 @ context


class LucidrainsUNet(nn.Module):
    """Sides must be multiples of 2 ** (levels - 1); t may be fractional."""

    def __init__(
        self,
        dim: int = 64,
        init_dim: int | None = None,
        out_dim: int | None = None,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        channels: int = 3,
        self_condition: bool = False,
        learned_variance: bool = False,
        learned_sinusoidal_cond: bool = False,
        random_fourier_features: bool = False,
        learned_sinusoidal_dim: int = 16,
        sinusoidal_pos_emb_theta: float = 10000.0,
        dropout: float = 0.0,
        attn_dim_head: int | tuple[int, ...] = 32,
        attn_heads: int | tuple[int, ...] = 4,
        full_attn: bool | tuple[bool, ...] | None = None,
        flash_attn: bool = False,
    ):
        """Heads, their size and `full_attn` may be given per level; by default the last is full."""
        super().__init__()
        self.self_condition = self_condition
        levels, temb_size = len(dim_mults), 4 * dim
        sizes = [init_dim or dim, *(dim * mult for mult in dim_mults)]
        full = _each(full_attn or (*[False] * (levels - 1), True), levels)
        heads, head_sizes = _each(attn_heads, levels), _each(attn_dim_head, levels)
        kinds = list(zip(heads, head_sizes, full, (flash_attn,) * levels, strict=True))
        if learned_sinusoidal_cond or random_fourier_features:
            embedding: nn.Module = _Fourier(learned_sinusoidal_dim, not random_fourier_features)
            embedding_size = 1 + learned_sinusoidal_dim
        else:
            embedding, embedding_size = _Sinusoidal(dim, sinusoidal_pos_emb_theta), dim

        def block(in_size: int, size: int) -> _Block:
            return _Block(in_size, size, temb_size, dropout)

        def level(in_size: int, size: int, kind: Any, resample: nn.Module) -> nn.ModuleList:
            blocks = block(in_size, size), block(in_size, size)
            return nn.ModuleList([*blocks, _Attention(size, *kind), resample])

        self.init_conv = nn.Conv2d(channels * (1 + self_condition), sizes[0], 7, padding=3)
        self.time_mlp = nn.Sequential(
            embedding,
            nn.Linear(embedding_size, temb_size),
            nn.GELU(),
            nn.Linear(temb_size, temb_size),
        )
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, kind in enumerate(kinds):
            size, wider = sizes[i : i + 2]
            down = _down(size, wider) if i < levels - 1 else nn.Conv2d(size, wider, 3, padding=1)
            self.downs.append(level(size, size, kind, down))
            up = _up(wider, size) if i > 0 else nn.Conv2d(wider, size, 3, padding=1)
            self.ups.insert(0, level(wider + size, wider, kind, up))
        self.mid_block1 = block(sizes[-1], sizes[-1])
        self.mid_attn = _Attention(sizes[-1], heads[-1], head_sizes[-1], True, flash_attn)
        self.mid_block2 = block(sizes[-1], sizes[-1])
        self.final_res_block = block(2 * sizes[0], sizes[0])
        self.final_conv = nn.Conv2d(sizes[0], out_dim or channels * (1 + learned_variance), 1)

    def forward(self, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        """x[B,C,H,W], t[B], an earlier estimate of x_0 (default: zeros) -> [B,out,H,W]."""
        if self.self_condition:
            x = torch.cat([torch.zeros_like(x) if x_self_cond is None else x_self_cond, x], dim=1)
        temb = self.time_mlp(t.to(self.init_conv.weight.dtype))
        x = first = self.init_conv(x)
        skips = []
        for block1, block2, attention, resample in map(_children, self.downs):
            skips.append(block1(x, temb))
            skips.append(attention(block2(skips[-1], temb)))
            x = resample(skips[-1])
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, temb)), temb)
        for block1, block2, attention, resample in map(_children, self.ups):
            x = block1(torch.cat([x, skips.pop()], dim=1), temb)
            x = block2(torch.cat([x, skips.pop()], dim=1), temb)
            x = resample(attention(x))
        return self.final_conv(self.final_res_block(torch.cat([x, first], dim=1), temb))


def _each(value: Any, levels: int) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,) * levels


def _children(level: nn.Module) -> list[nn.Module]:
    return list(level.children())


def _down(size: int, wider: int) -> nn.Sequential:
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * size, wider, 1))


def _up(wider: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(wider, size, 3, padding=1))
