"""The tutorial U-Net of "The Annotated Diffusion Model" (Rogge & Rasul, June 2022).

Its notebook and its text differ in the norm; the EPITA practical has the network of the notebook.
The later text has another network, annotated_ws.py.
"""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jax_ddpm.models.architecture import Architecture, ImageShape
from jax_ddpm.models.initializers import ONES, ZEROS
from jax_ddpm.models.layers import (
    MLP,
    DoublingConv,
    DropoutKeys,
    Dtype,
    Features,
    GroupNorm,
    Segment,
    Temb,
    attention,
    contract,
    conv,
    dense,
    gelu,
    statistics_dtype,
    timestep_embedding,
)
from jax_ddpm.models.network import NetworkModule

Norm = Literal["group", "layer"]

EPS = 1e-5  # of every norm: PyTorch's default
HEADS, HEAD_DIM = 4, 32  # of every attention, whatever the width


@dataclass(frozen=True)
class AnnotatedConfig(Architecture):
    """The U-Net of the Annotated Diffusion Model (June 2022) and of the EPITA practical."""

    dim: int = 28
    """Channels at full resolution; the time embedding has four times as many."""
    init_dim: int | None = None
    """Channels of the first convolution; None: 2 * (dim // 3)."""
    out_dim: int | None = None
    """Channels of the output; None: the data's, or twice as many with a learned variance."""
    dim_mults: tuple[int, ...] = (1, 2, 4)
    """Channels at each resolution, as multiples of dim, the first 1; each resolution is half of the
    one before."""
    channels: int | None = None
    """Channels of the images; None: the data's."""
    with_time_emb: bool = True
    """Tell the network the timestep."""
    resnet_block_groups: int = 8
    """Groups of the group normalisation in ResNet blocks."""
    use_convnext: bool = True
    """ConvNeXt blocks; off: ResNet blocks."""
    convnext_mult: int = 2
    """How much wider a ConvNeXt block is inside."""
    norm: Norm = "group"
    """The norm outside ResNet blocks. group: one group of all channels, as in the notebook. layer:
    each pixel's channels, as in the text."""

    def module(self, out_channels: int, dtype: Any) -> "AnnotatedUNet":
        return AnnotatedUNet(self, self.out_dim or out_channels, dtype)

    def check(self) -> None:
        super().check()
        check_widths(self, embeds_time=self.with_time_emb)
        self.require_positive("out_dim", "channels")
        self.require(self.stem >= 1, "init_dim", "at least 1")
        first = self.dim_mults[0] == 1
        self.require(first, "dim_mults", "1 at full resolution: the last block has dim channels")
        self.require(self.convnext_mult >= 1, "convnext_mult", "at least 1")
        if not self.use_convnext:
            check_groups(self)

    def takes_side(self, side: int) -> bool:
        """Multiples, and the odd side after one."""
        return side >= self.side_multiple and side % self.side_multiple <= 1

    @property
    def stem(self) -> int:
        """The number of channels after the first convolution."""
        return self.dim // 3 * 2 if self.init_dim is None else self.init_dim

    @property
    def side_multiple(self) -> int:
        return int(2 ** (len(self.dim_mults) - 1))

    @property
    def image_channels(self) -> int | None:
        return self.channels

    @property
    def example_shape(self) -> ImageShape:
        return self.side_multiple, self.side_multiple, self.channels or 3


def check_widths(config: Any, *, embeds_time: bool = True) -> None:
    """Raise UserError unless sinusoids fill `dim` (two frequencies or more)."""
    dim, mults = config.dim, config.dim_mults
    if embeds_time:
        config.require(dim >= 4 and dim % 2 == 0, "dim", "an even number, at least 4")
    config.require(dim >= 1, "dim", "at least 1")
    config.require(bool(mults) and min(mults) >= 1, "dim_mults", "positive whole numbers")


def check_groups(config: Any) -> None:
    """Raise UserError unless the norms' groups divide `dim`, and with it all its multiples."""
    groups = config.resnet_block_groups
    divides = groups >= 1 and config.dim % groups == 0
    config.require(divides, "resnet_block_groups", f"a divisor of dim {config.dim}")


def add_shortcut(h: Features, x: Features, dtype: Dtype) -> Features:
    """h + x, with a 1x1 convolution of x where the channels differ."""
    return h + (x if x.shape[-1] == h.shape[-1] else conv(x, h.shape[-1], 1, "shortcut", dtype))


class ChannelNorm(nn.Module):
    """Layer normalisation of each pixel's channels; statistics in float32 or better."""

    dtype: Dtype
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Features) -> Features:
        shape, dtype = (x.shape[-1],), statistics_dtype(self.dtype)
        wide = x.astype(dtype)
        centred = wide - wide.mean(-1, keepdims=True)
        y = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
        scale = self.param("scale", ONES, shape, jnp.float32)
        y = y * scale.astype(dtype)[None, None, None]
        if self.use_bias:
            bias = self.param("bias", ZEROS, shape, jnp.float32)
            y = y + bias.astype(dtype)[None, None, None]
        return y.astype(self.dtype)


def normalise(x: Features, norm: Norm, name: str, dtype: Dtype) -> Features:
    """Normalise x over its channels, and over its pixels where `norm` is "group"."""
    if norm == "layer":
        return ChannelNorm(dtype, name=name)(x)
    return GroupNorm(1, dtype, EPS, name=name)(x)


def embed_time(t: Num[Array, " b"], dim: int, dtype: Dtype) -> Temb:
    """Sines and cosines of t, then two dense layers with GELU between."""
    h = timestep_embedding(t, dim, statistics_dtype(dtype))
    return MLP(4 * dim, gelu, dtype, name="temb")(h)


class ResnetBlock(Segment):
    """Two blocks of convolution, group norm and SiLU, the time between them, and a shortcut."""

    features: int
    num_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features, temb: Temb | None) -> Features:
        h = self.block(x, 1)
        if temb is not None:
            h = h + dense(nn.silu(temb), self.features, "temb_proj", self.dtype)[:, None, None, :]
        return add_shortcut(self.block(h, 2), x, self.dtype)

    def block(self, x: Features, i: int) -> Features:
        """Apply block number `i`."""
        h = conv(x, self.features, 3, f"conv{i}", self.dtype)
        return nn.silu(GroupNorm(self.num_groups, self.dtype, EPS, name=f"norm{i}")(h))


class ConvNextBlock(Segment):
    """A 7x7 convolution per channel, time, then two 3x3 convolutions, plus a shortcut.

    After Liu et al. 2022, whose block has 1x1 convolutions and one norm.
    """

    features: int
    mult: int
    norm: Norm
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features, temb: Temb | None) -> Features:
        channels = x.shape[-1]
        h = conv(x, channels, 7, "depthwise", self.dtype, groups=channels)
        if temb is not None:
            h = h + dense(gelu(temb), channels, "temb_proj", self.dtype)[:, None, None, :]
        h = normalise(h, self.norm, "norm_in", self.dtype)
        h = gelu(conv(h, self.mult * self.features, 3, "expand", self.dtype))
        h = normalise(h, self.norm, "norm_mid", self.dtype)
        return add_shortcut(conv(h, self.features, 3, "project", self.dtype), x, self.dtype)


class Attention(Segment):
    """Multi-head attention over all pixels after a norm, with a residual connection.

    `linear`: its cost grows with the number of pixels, not with its square (Shen et al. 2018);
    this one ends in a second norm.
    """

    linear: bool
    norm: Norm
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features) -> Features:
        b, height, width, channels = x.shape
        h = normalise(x, self.norm, "norm", self.dtype)
        qkv = conv(h, 3 * HEADS * HEAD_DIM, 1, "qkv", self.dtype, use_bias=False)
        qkv = qkv.reshape(b, height * width, 3, HEADS, HEAD_DIM).transpose(2, 0, 3, 1, 4)
        qkv = qkv.reshape(3, b * HEADS, height * width, HEAD_DIM)
        h = (linear_attention if self.linear else attention)(*qkv)  # [b*heads, n, d]
        h = h.reshape(b, HEADS, height, width, HEAD_DIM).transpose(0, 2, 3, 1, 4)
        h = h.reshape(b, height, width, HEADS * HEAD_DIM)
        h = conv(h, channels, 1, "proj_out", self.dtype)
        return x + (normalise(h, self.norm, "norm_out", self.dtype) if self.linear else h)


def linear_attention(
    q: Float[Array, "b n c"], k: Float[Array, "b m c"], v: Float[Array, "b m c"]
) -> Float[Array, "b n c"]:
    """softmax_c(q) / sqrt(c) (softmax_m(k)^T v), softmax and sums in float32 or better."""
    wide = statistics_dtype(q.dtype)
    q = nn.softmax(q.astype(wide), axis=-1) * q.shape[-1] ** -0.5
    k = nn.softmax(k.astype(wide), axis=-2)
    q, k = (a.astype(v.dtype) for a in (q, k))
    context = contract("bmc,bmd->bcd", k, v).astype(v.dtype)
    return contract("bnc,bcd->bnd", q, context).astype(v.dtype)


def make_block(config: AnnotatedConfig, features: int, name: str, dtype: Dtype) -> nn.Module:
    """The kind of block that `config` asks for."""
    if config.use_convnext:
        return ConvNextBlock(features, config.convnext_mult, config.norm, dtype, name=name)
    return ResnetBlock(features, config.resnet_block_groups, dtype, name=name)


class Stage(nn.Module):
    """What the stages share: one resolution, with blocks of one width and one attention."""

    config: AnnotatedConfig
    features: int
    dtype: Dtype

    def block(self, x: Features, temb: Temb | None, name: str) -> Features:
        """Apply the block called `name`."""
        return make_block(self.config, self.features, name, self.dtype)(x, temb)

    def attend(self, x: Features, *, linear: bool = True) -> Features:
        """Apply the stage's one attention."""
        return Attention(linear, self.config.norm, self.dtype, name="attn_1")(x)


class DownStage(Stage):
    """One resolution of the contracting path."""

    downsample: bool

    @nn.compact
    def __call__(self, h: Features, temb: Temb | None) -> tuple[Features, Features]:
        """The skip connection, and the input of the next stage."""
        h = self.block(h, temb, "block_0")
        h = self.attend(self.block(h, temb, "block_1"))
        if not self.downsample:
            return h, h
        args = (self.features, 4, "downsample", self.dtype)
        return h, conv(h, *args, stride=2, padding=(1, 1))


class UpStage(Stage):
    """One resolution of the expanding path, and the step to the next: always a doubling."""

    @nn.compact
    def __call__(self, h: Features, skip: Features, temb: Temb | None) -> Features:
        h = self.block(jnp.concatenate([h, skip], axis=-1), temb, "block_0")
        h = self.attend(self.block(h, temb, "block_1"))
        return DoublingConv(self.features, self.dtype, name="upsample")(h)


class Middle(Stage):
    """Block, full attention, block at the lowest resolution."""

    @nn.compact
    def __call__(self, h: Features, temb: Temb | None) -> Features:
        h = self.attend(self.block(h, temb, "block_1"), linear=False)
        return self.block(h, temb, "block_2")


class AnnotatedUNet(NetworkModule):
    """The U-Net of the Annotated Diffusion Model (June 2022) and of the EPITA practical.

    Stage i works at 1/2^i of the image's size with dim * dim_mults[i] channels. The first stage's
    skip connection is never used, as published: its resolution has no expanding stage. An odd side
    comes out one pixel shorter, as published.
    """

    config: AnnotatedConfig

    def forward(
        self, x_t: Features, t: Num[Array, " b"], label: None, dropout_keys: DropoutKeys
    ) -> Features:
        config, last = self.config, len(self.config.dim_mults) - 1
        temb = embed_time(t, config.dim, self.dtype) if config.with_time_emb else None
        h = conv(x_t, config.stem, 7, "conv_in", self.dtype)
        sizes = [config.dim * mult for mult in config.dim_mults]
        skips = []
        for i, size in enumerate(sizes):
            skip, h = DownStage(config, size, self.dtype, i < last, name=f"down_{i}")(h, temb)
            skips.append(skip)
        h = Middle(config, sizes[-1], self.dtype, name="mid")(h, temb)
        for i in range(last, 0, -1):
            h = UpStage(config, sizes[i - 1], self.dtype, name=f"up_{i}")(h, skips[i], temb)
        h = make_block(config, config.dim, "block_out", self.dtype)(h, None)
        return conv(h, self.out_channels, 1, "conv_out", self.dtype)
