"""OpenAI's U-Net (Nichol & Dhariwal 2021, Dhariwal & Nichol 2021), with its parameter names."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """t[B] -> [B,dim]: cosines, then sines, at the frequencies 10000 ** (-2 * i / dim)."""
    work = torch.promote_types(dtype, torch.float32)  # never half precision
    half = dim // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=work, device=t.device) / max(half, 1))
    angles = t.to(work)[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2)).to(dtype)


def _norm(size: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, size, eps=1e-5)


def _zero(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class _Down(nn.Module):
    """[B,C,H,W] -> [B,C,H/2,W/2]."""

    def __init__(self, size: int, learned: bool):
        super().__init__()
        self.op = nn.Conv2d(size, size, 3, 2, 1) if learned else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class _Up(nn.Module):
    """[B,C,H,W] -> [B,C,2H,2W]."""

    def __init__(self, size: int, learned: bool):
        super().__init__()
        self.conv = nn.Conv2d(size, size, 3, padding=1) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))  # nearest


class _ResBlock(nn.Module):
    """x[B,in,H,W], temb[B,E] -> [B,out,H,W]; `change` halves or doubles the resolution."""

    def __init__(
        self,
        in_size: int,
        size: int,
        temb_size: int,
        dropout: float,
        scale_shift: bool,
        change: nn.Module | None = None,
    ):
        super().__init__()
        conv_1, conv_2 = nn.Conv2d(in_size, size, 3, padding=1), nn.Conv2d(size, size, 3, padding=1)
        self.in_layers = nn.Sequential(_norm(in_size), nn.SiLU(), conv_1)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(temb_size, size * (1 + scale_shift)))
        dropping = nn.Dropout(dropout)
        self.out_layers = nn.Sequential(_norm(size), nn.SiLU(), dropping, _zero(conv_2))
        self.skip_connection = nn.Conv2d(in_size, size, 1) if in_size != size else nn.Identity()
        self.change, self.scale_shift = change or nn.Identity(), scale_shift

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.in_layers[2](self.change(self.in_layers[:2](x)))
        emb = self.emb_layers(temb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + emb)
        return h + self.skip_connection(self.change(x))


class _Attention(nn.Module):
    """Residual self-attention over the H * W positions of x[B,C,H,W]."""

    def __init__(self, size: int, heads: int, qkv_first: bool):
        super().__init__()
        self.norm = _norm(size)
        self.qkv = nn.Conv1d(size, 3 * size, 1)
        self.proj_out = _zero(nn.Conv1d(size, size, 1))
        self.heads, self.qkv_first = heads, qkv_first

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm(x).flatten(2))  # [B,3C,N]
        if self.qkv_first:
            q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)  # each [B,heads,c,N]
        else:
            q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)
        scale = q.shape[2] ** -0.25
        weights = torch.einsum("bhci,bhcj->bhij", q * scale, k * scale).softmax(dim=-1)
        h = torch.einsum("bhij,bhcj->bhci", weights, v).reshape(b, c, height * width)
        return x + self.proj_out(h).reshape(x.shape)


class _Kinds(NamedTuple):
    """Builds the layers of one network."""

    temb_size: int
    dropout: float
    scale_shift: bool
    head_size: int
    qkv_first: bool
    learned: bool
    updown: bool

    def block(self, in_size: int, size: int, change: nn.Module | None = None) -> nn.Module:
        return _ResBlock(in_size, size, self.temb_size, self.dropout, self.scale_shift, change)

    def attention(self, size: int, heads: int) -> nn.Module:
        heads = heads if self.head_size == -1 else size // self.head_size
        return _Attention(size, heads, self.qkv_first)

    def change(self, layer: type[_Down] | type[_Up], size: int) -> nn.Module:
        if self.updown:
            return self.block(size, size, layer(size, False))
        return layer(size, self.learned)


class UNetModel(nn.Module):
    """UNetModel of guided-diffusion; without the last three arguments, of improved-diffusion."""

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Collection[int],
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        num_classes: int | None = None,
        num_heads: int = 1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        num_head_channels: int = -1,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
    ):
        """`attention_resolutions`: 1 is the finest resolution, 2 half of it, then 4, and so on."""
        super().__init__()
        self.model_channels, temb_size = model_channels, 4 * model_channels
        dense = nn.Linear(model_channels, temb_size), nn.Linear(temb_size, temb_size)
        self.time_embed = nn.Sequential(dense[0], nn.SiLU(), dense[1])
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, temb_size)
        kinds = _Kinds(
            temb_size=temb_size,
            dropout=dropout,
            scale_shift=use_scale_shift_norm,
            head_size=num_head_channels,
            qkv_first=use_new_attention_order,
            learned=conv_resample,
            updown=resblock_updown,
        )
        sizes = [int(mult * model_channels) for mult in channel_mult]
        levels = [(size, 2**i in attention_resolutions) for i, size in enumerate(sizes)]
        down, widths = _build_down(kinds, levels, num_res_blocks, num_heads)
        conv_in = nn.Conv2d(in_channels, sizes[0], 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([conv_in]), *map(nn.ModuleList, down)])
        last = widths[-1]
        middle = kinds.block(last, last), kinds.attention(last, num_heads), kinds.block(last, last)
        self.middle_block = nn.ModuleList(middle)
        up_heads = num_heads if num_heads_upsample == -1 else num_heads_upsample
        up = _build_up(kinds, levels, num_res_blocks, up_heads, widths)
        self.output_blocks = nn.ModuleList(map(nn.ModuleList, up))
        conv_out = nn.Conv2d(sizes[0], out_channels, 3, padding=1)
        self.out = nn.Sequential(_norm(sizes[0]), nn.SiLU(), _zero(conv_out))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x[B,C,H,W], t[B] (may be fractional), labels y[B] if it has classes -> [B,out,H,W]."""
        dtype = next(self.parameters()).dtype
        temb = self.time_embed(timestep_embedding(t, self.model_channels, dtype))
        temb = temb if y is None else temb + self.label_emb(y)
        skips: list[Tensor] = []
        for layers in self.input_blocks:
            x = _run(layers, x, temb)
            skips.append(x)
        x = _run(self.middle_block, x, temb)
        for layers in self.output_blocks:
            x = _run(layers, torch.cat([x, skips.pop()], dim=1), temb)
        return self.out(x)


def _build_down(
    kinds: _Kinds, levels: list[tuple[int, bool]], num_blocks: int, heads: int
) -> tuple[list[list[nn.Module]], list[int]]:
    """The layers of each block after the first convolution, and the channels of all outputs."""
    blocks, size = list[list[nn.Module]](), levels[0][0]
    widths = [size]
    for i, (level, attends) in enumerate(levels):
        if i > 0:
            blocks.append([kinds.change(_Down, size)])
            widths.append(size)
        for _ in range(num_blocks):
            blocks.append([kinds.block(size, level), *[kinds.attention(level, heads)] * attends])
            size = level
            widths.append(size)
    return blocks, widths


def _build_up(
    kinds: _Kinds, levels: list[tuple[int, bool]], num_blocks: int, heads: int, widths: list[int]
) -> list[list[nn.Module]]:
    """The layers of each block; each also takes an output of the way down, in reverse order."""
    blocks, size, skips = list[list[nn.Module]](), widths[-1], list(widths)
    for i, (level, attends) in reversed(list(enumerate(levels))):
        for _ in range(num_blocks + 1):
            block = kinds.block(size + skips.pop(), level)
            blocks.append([block, *[kinds.attention(level, heads)] * attends])
            size = level
        if i > 0:
            blocks[-1].append(kinds.change(_Up, size))
    return blocks


def _run(layers: Any, x: Tensor, temb: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x, temb) if isinstance(layer, _ResBlock) else layer(x)
    return x
