"""The U-Net of Ho et al. 2020, appendix B."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6  # of the norms: TensorFlow's value; torch's default is 1e-5


def timestep_embedding(t: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """[B,dim] of t[B]: sines, then cosines, at dim // 2 frequencies from 1 to 1e-4.

    Vaswani et al. 2017, section 3.5, in the form of Ho et al.'s code.
    """
    work = (
        torch.float64 if torch.float64 in (t.dtype, dtype) else torch.float32
    )  # never half precision
    half = dim // 2
    index = torch.arange(half, dtype=work, device=t.device)
    angles = t.to(work)[:, None] * torch.exp(index * (-math.log(10000.0) / (half - 1)))
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2)).to(dtype)


class _ResnetBlock(nn.Module):
    """x[B,in,H,W], temb[B,E] -> [B,out,H,W]."""

    def __init__(self, in_size: int, size: int, temb_size: int, dropout: float, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_size, EPS)
        self.conv1 = nn.Conv2d(in_size, size, 3, padding=1)
        self.temb_proj = nn.Linear(temb_size, size)
        self.norm2 = nn.GroupNorm(groups, size, EPS)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(size, size, 3, padding=1)
        self.shortcut = nn.Conv2d(in_size, size, 1) if in_size != size else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + self.shortcut(x)


class _Attention(nn.Module):
    """Residual single-head self-attention over the H * W positions of x[B,C,H,W]."""

    def __init__(self, size: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, size, EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(size, size, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))  # [B,C,HW]
        scores = torch.einsum("bci,bcj->bij", q, k) * x.shape[1] ** -0.5
        h = torch.einsum("bij,bcj->bci", scores.softmax(dim=-1), v).reshape(x.shape)
        return x + self.proj_out(h)


class _Level(nn.Module):
    """Blocks of one resolution, with attention if `attend`.

    `kind` is (size of temb, dropout, groups).
    """

    def __init__(self, in_sizes: list[int], size: int, attend: bool, kind: tuple[int, float, int]):
        super().__init__()
        self.block = nn.ModuleList(_ResnetBlock(in_size, size, *kind) for in_size in in_sizes)
        self.attn = nn.ModuleList(_Attention(size, kind[-1]) for _ in in_sizes if attend)

    def forward(self, j: int, x: Tensor, temb: Tensor) -> Tensor:
        x = self.block[j](x, temb)
        return self.attn[j](x) if self.attn else x


class UNet(nn.Module):
    """Takes any H and W: it pads with zeros to a multiple of 2 ** (levels - 1), and crops."""

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attn_levels: Sequence[int] = (1,),
        dropout: float = 0.1,
        num_groups: int = 32,
        num_classes: int | None = None,
        resamp_with_conv: bool = True,
    ):
        """The defaults are the CIFAR-10 network. `attn_levels`: 0 is the finest resolution.

        Without `resamp_with_conv`, pixels are averaged on the way down and repeated on the way up.
        """
        super().__init__()
        self.num_res_blocks, self.stride = num_res_blocks, 2 ** (len(channel_mult) - 1)
        sizes = [channels * mult for mult in channel_mult]
        kind = (4 * channels, dropout, num_groups)
        dense = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, 4 * channels)
        self.temb = nn.ModuleDict({"dense": nn.ModuleList(dense)})
        self.label_emb = None if num_classes is None else nn.Embedding(num_classes, 4 * channels)
        self.conv_in = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, size in enumerate(sizes):
            finer, coarser = [channels, *sizes][i], [*sizes, sizes[-1]][i + 1]
            inner, attend = [size] * (num_res_blocks - 1), i in attn_levels
            self.down.append(_Level([finer, *inner], size, attend, kind))
            # On the way up, each block also takes an output of the way down, in reverse order.
            in_sizes = [coarser + size, *(2 * width for width in inner), size + finer]
            self.up.append(_Level(in_sizes, size, attend, kind))
        self.resamp_with_conv = resamp_with_conv
        for i, size in enumerate(sizes[:-1] if resamp_with_conv else []):
            self.down[i].downsample = nn.Conv2d(size, size, 3, stride=2)
            self.up[i + 1].upsample = nn.Conv2d(sizes[i + 1], sizes[i + 1], 3, padding=1)
        block_1, block_2 = (_ResnetBlock(sizes[-1], sizes[-1], *kind) for _ in range(2))
        attn_1 = _Attention(sizes[-1], num_groups)
        self.mid = nn.ModuleDict({"block_1": block_1, "attn_1": attn_1, "block_2": block_2})
        self.norm_out = nn.GroupNorm(num_groups, sizes[0], EPS)
        self.conv_out = nn.Conv2d(sizes[0], out_channels, 3, padding=1)
        _initialise(self)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """x[B,C,H,W], t[B], label[B] if the network has classes -> [B,out,H,W]."""
        height, width = x.shape[2:]
        rows, columns = -height % self.stride, -width % self.stride
        top, left = rows // 2, columns // 2
        first, second = self.temb["dense"].children()
        emb = timestep_embedding(t, self.conv_in.out_channels, self.conv_in.weight.dtype)
        x = F.pad(x, (left, columns - left, top, rows - top))
        temb = second(F.silu(first(emb)))
        if self.label_emb is not None:
            temb = temb + self.label_emb(label)
        out = self._run(x, temb)
        return out[:, :, top : top + height, left : left + width]

    def _run(self, x: Tensor, temb: Tensor) -> Tensor:
        skips = [self.conv_in(x)]
        for level in self.down:
            for j in range(self.num_res_blocks):
                skips.append(level(j, skips[-1], temb))
            if level is not self.down[-1]:
                skips.append(self._halve(level, skips[-1]))
        x = self.mid["attn_1"](self.mid["block_1"](skips[-1], temb))
        x = self.mid["block_2"](x, temb)
        for level in reversed(self.up):
            for j in range(self.num_res_blocks + 1):
                x = level(j, torch.cat([x, skips.pop()], dim=1), temb)
            if level is not self.up[0]:
                x = F.interpolate(x, scale_factor=2.0)  # nearest
                x = level.get_submodule("upsample")(x) if self.resamp_with_conv else x
        return self.conv_out(F.silu(self.norm_out(x)))

    def _halve(self, level: nn.Module, x: Tensor) -> Tensor:
        if not self.resamp_with_conv:
            return F.avg_pool2d(x, 2)
        # Zeros only below and on the right: TensorFlow's "SAME" for even sizes.
        return level.get_submodule("downsample")(F.pad(x, (0, 1, 0, 1)))


def _initialise(model: UNet) -> None:
    """Xavier-uniform kernels and zero biases; tiny kernels in layers that should output zero."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            outputs_zero = name.endswith(("conv2", "proj_out", "conv_out"))
            nn.init.xavier_uniform_(layer.weight, gain=1e-5 if outputs_zero else 1.0)
            nn.init.zeros_(layer.get_parameter("bias"))
