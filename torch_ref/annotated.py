"""The U-Nets of the Annotated Diffusion Model (June 2022), which the EPITA practical copies."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .unet import timestep_embedding

HEADS, HEAD_DIM = 4, 32


class _ChannelNorm(nn.Module):
    """Normalises the channels of each pixel, with a learned scale g and shift b."""

    def __init__(self, size: int):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, size, 1, 1))
        self.b = nn.Parameter(torch.zeros(1, size, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.g + self.b


def _make_norm(size: int, layer: bool) -> nn.Module:
    """A norm of `size` channels: over each pixel if `layer`, otherwise over the whole image."""
    return _ChannelNorm(size) if layer else nn.GroupNorm(1, size)


class TimeMLP(nn.Sequential):
    """t[B] -> [B,4*dim]. Entry 0 has no parameters: it keeps the published numbering."""

    def __init__(self, dim: int):
        layers = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 4 * dim)
        super().__init__(nn.Identity(), *layers)
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        """Sinusoids of t in the type of the parameters, through the layers."""
        dtype = self.get_parameter("1.weight").dtype
        return super().forward(timestep_embedding(t, self.dim, dtype))


def time_projection(act: nn.Module, temb_size: int | None, size: int) -> nn.Module | None:
    """Projects the time embedding to `size` channels; None if there is no embedding."""
    return None if temb_size is None else nn.Sequential(act, nn.Linear(temb_size, size))


def shortcut(in_size: int, size: int) -> nn.Module:
    """A 1x1 convolution if the channels differ."""
    return nn.Identity() if in_size == size else nn.Conv2d(in_size, size, 1)


class _Block(nn.Module):
    def __init__(self, in_size: int, size: int, groups: int):
        super().__init__()
        self.proj = nn.Conv2d(in_size, size, 3, padding=1)
        self.norm = nn.GroupNorm(groups, size)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.proj(x)))


class _ResnetBlock(nn.Module):
    """x[B,in,H,W], temb[B,E] -> [B,out,H,W]; time is added between the two halves."""

    def __init__(self, in_size: int, size: int, temb_size: int | None, groups: int):
        super().__init__()
        self.mlp = time_projection(nn.SiLU(), temb_size, size)
        self.block1, self.block2 = _Block(in_size, size, groups), _Block(size, size, groups)
        self.res_conv = shortcut(in_size, size)

    def forward(self, x: Tensor, temb: Tensor | None) -> Tensor:
        h = self.block1(x)
        if self.mlp is not None:
            h = h + self.mlp(temb)[:, :, None, None]
        return self.block2(h) + self.res_conv(x)


class _ConvNextBlock(nn.Module):
    """x[B,in,H,W], temb[B,E] -> [B,out,H,W]; time is added after the depthwise convolution."""

    def __init__(self, in_size: int, size: int, temb_size: int | None, mult: int, layer: bool):
        super().__init__()
        self.mlp = time_projection(nn.GELU(), temb_size, in_size)
        self.ds_conv = nn.Conv2d(in_size, in_size, 7, padding=3, groups=in_size)
        wide = size * mult
        self.net = nn.Sequential(
            _make_norm(in_size, layer),
            nn.Conv2d(in_size, wide, 3, padding=1),
            nn.GELU(),
            _make_norm(wide, layer),
            nn.Conv2d(wide, size, 3, padding=1),
        )
        self.res_conv = shortcut(in_size, size)

    def forward(self, x: Tensor, temb: Tensor | None) -> Tensor:
        h = self.ds_conv(x)
        if self.mlp is not None:
            h = h + self.mlp(temb)[:, :, None, None]
        return self.net(h) + self.res_conv(x)


class _Attention(nn.Module):
    """x[B,C,H,W] -> the same shape; `linear` sums over pixels instead of pairs of pixels."""

    def __init__(self, size: int, linear: bool, layer: bool):
        super().__init__()
        width = HEADS * HEAD_DIM
        self.linear = linear
        self.to_qkv = nn.Conv2d(size, 3 * width, 1, bias=False)
        out = nn.Conv2d(width, size, 1)
        self.to_out = nn.Sequential(out, _make_norm(size, layer)) if linear else out

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(x).reshape(len(x), 3, HEADS, HEAD_DIM, -1)
        q, k, v = qkv.unbind(1)  # [B,heads,d,HW]
        if self.linear:
            context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v)
            h = torch.einsum("bhde,bhdn->bhen", context, q.softmax(-2) * HEAD_DIM**-0.5)
        else:
            scores = torch.einsum("bhdi,bhdj->bhij", q * HEAD_DIM**-0.5, k)
            h = torch.einsum("bhij,bhdj->bhdi", scores.softmax(-1), v)
        return self.to_out(h.reshape(len(x), -1, *x.shape[2:]))


class _PreNorm(nn.Module):
    def __init__(self, size: int, fn: nn.Module, layer: bool):
        super().__init__()
        self.fn, self.norm = fn, _make_norm(size, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class ResidualAttention(nn.Module):
    """x + attention(norm(x))."""

    def __init__(self, size: int, linear: bool, layer: bool = False):
        super().__init__()
        self.fn = _PreNorm(size, _Attention(size, linear, layer), layer)

    def forward(self, x: Tensor) -> Tensor:
        """x[B,C,H,W] -> the same shape."""
        return x + self.fn(x)


class AnnotatedUNet(nn.Module):
    """Both forms of June 2022: the text's (`layer`, a norm per pixel) and the notebook's."""

    def __init__(
        self,
        dim: int,
        init_dim: int | None = None,
        out_dim: int | None = None,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        channels: int = 3,
        with_time_emb: bool = True,
        resnet_block_groups: int = 8,
        use_convnext: bool = True,
        convnext_mult: int = 2,
        *,
        layer: bool = False,
    ):
        """`resnet_block_groups` is for ResNet blocks, `convnext_mult` for ConvNeXt blocks."""
        super().__init__()
        init_dim = dim // 3 * 2 if init_dim is None else init_dim
        temb_size = 4 * dim if with_time_emb else None

        def block(in_size: int, size: int, temb_size: int | None = temb_size) -> nn.Module:
            if use_convnext:
                return _ConvNextBlock(in_size, size, temb_size, convnext_mult, layer)
            return _ResnetBlock(in_size, size, temb_size, resnet_block_groups)

        def level(in_size: int, size: int, resample: nn.Module) -> nn.ModuleList:
            attention = ResidualAttention(size, True, layer)
            return nn.ModuleList([block(in_size, size), block(size, size), attention, resample])

        sizes = [init_dim, *(dim * mult for mult in dim_mults)]
        self.init_conv = nn.Conv2d(channels, init_dim, 7, padding=3)
        self.time_mlp = TimeMLP(dim) if with_time_emb else None
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for in_size, size in pairwise(sizes[:-1]):
            self.downs.append(level(in_size, size, nn.Conv2d(size, size, 4, 2, 1)))
        self.downs.append(level(sizes[-2], sizes[-1], nn.Identity()))
        self.mid_block1, self.mid_block2 = (block(sizes[-1], sizes[-1]) for _ in range(2))
        self.mid_attn = ResidualAttention(sizes[-1], False, layer)
        for size, coarser in reversed(list(pairwise(sizes[1:]))):
            self.ups.append(level(2 * coarser, size, nn.ConvTranspose2d(size, size, 4, 2, 1)))
        out = nn.Conv2d(dim, channels if out_dim is None else out_dim, 1)
        self.final_conv = nn.ModuleList([block(dim, dim, None), out])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x[B,C,H,W], t[B] -> [B,out,H,W]; an odd side comes out one pixel shorter."""
        temb = None if self.time_mlp is None else self.time_mlp(t)
        x = self.init_conv(x)
        skips = []
        for level in self.downs:
            block1, block2, attention, downsample = level.children()
            skips.append(attention(block2(block1(x, temb), temb)))
            x = downsample(skips[-1])
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, temb)), temb)
        for level in self.ups:  # the first skip stays unused, as published
            block1, block2, attention, upsample = level.children()
            x = block1(torch.cat([x, skips.pop()], dim=1), temb)
            x = upsample(attention(block2(x, temb)))
        block, conv = self.final_conv
        return conv(block(x, None))
