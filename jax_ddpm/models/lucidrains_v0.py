"""The U-Nets of lucidrains' `denoising_diffusion_pytorch` 0.7 to 0.9, and 0.16 to 0.18.

The first has ConvNeXt blocks and no first convolution, the second ResNet blocks that the time
scales and shifts.
"""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jax_ddpm.models.annotated import ChannelNorm, add_shortcut, check_groups, linear_attention
from jax_ddpm.models.architecture import Architecture, ImageShape
from jax_ddpm.models.layers import (
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
from jax_ddpm.models.lucidrains_layers import EPS
from jax_ddpm.models.network import NetworkModule

HEADS, HEAD_DIM = 4, 32  # of every attention, whatever the width
EXPANSION = 2  # how much wider a ConvNeXt block is inside


@dataclass(frozen=True)
class LucidrainsV0Config(Architecture):
    """lucidrains' U-Nets of releases 0.7 to 0.9 and 0.16 to 0.18."""

    dim: int = 64
    """Channels at full resolution."""
    init_dim: int | None = None
    """Channels of the first convolution, which comes before ResNet blocks; None: 2 * (dim // 3)."""
    out_dim: int | None = None
    """Channels of the output; None: the data's, or twice as many with a learned variance."""
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    """Channels at each resolution, as multiples of dim, the first 1; each resolution is half of the
    one before."""
    channels: int | None = None
    """Channels of the images; None: the data's."""
    blocks: Literal["resnet", "convnext"] = "resnet"
    """resnet: the network of 0.16 to 0.18. convnext: the one of 0.7 to 0.9."""
    resnet_block_groups: int = 8
    """Groups of the group norms in ResNet blocks."""
    with_time_emb: bool = True
    """Tell the network the timestep; networks of ResNet blocks always do."""
    full_mid_attention: bool = True
    """Softmax attention in the middle; off: linear attention, as in 0.7."""

    def module(self, out_channels: int, dtype: Any) -> "LucidrainsV0UNet":
        return LucidrainsV0UNet(self, self.out_dim or out_channels, dtype)

    def check(self) -> None:
        super().check()
        mults, even = self.dim_mults, self.dim >= 4 and self.dim % 2 == 0
        self.require(even or not self.with_time_emb, "dim", "an even number, at least 4")
        self.require(self.dim >= 1, "dim", "at least 1")
        self.require(bool(mults) and min(mults) >= 1, "dim_mults", "positive whole numbers")
        self.require(mults[0] == 1, "dim_mults", "1 at full resolution: the last block has dim")
        self.require_positive("init_dim", "out_dim", "channels")
        if self.blocks == "resnet":
            check_groups(self)
            for name in ("with_time_emb", "full_mid_attention"):
                self.require(getattr(self, name), name, "on with ResNet blocks")
        else:
            self.require(self.init_dim is None, "init_dim", "None with ConvNeXt blocks")

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
        return 4 * self.side_multiple, 4 * self.side_multiple, self.channels or 3

    def make_block(self, features: int, name: str, dtype: Dtype, *, norm: bool = True) -> nn.Module:
        """Make a block: (h, temb) -> h. Only ConvNeXt blocks can do without a norm."""
        if self.blocks == "convnext":
            return ConvNextBlock(features, norm, dtype, name=name)
        return ResnetBlock(features, self.resnet_block_groups, dtype, name=name)


class ResnetBlock(Segment):
    """Two convolutions, the first scaled and shifted by the time if given, plus a shortcut."""

    features: int
    num_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features, temb: Temb | None) -> Features:
        h = self.convolve(x, 1)
        if temb is not None:
            modulation = dense(nn.silu(temb), 2 * self.features, "temb_proj", self.dtype)
            scale, shift = jnp.split(modulation[:, None, None, :], 2, axis=-1)
            h = h * (scale + 1) + shift
        return add_shortcut(nn.silu(self.convolve(nn.silu(h), 2)), x, self.dtype)

    def convolve(self, x: Features, i: int) -> Features:
        """Apply convolution and norm number `i`."""
        h = conv(x, self.features, 3, f"conv{i}", self.dtype)
        return GroupNorm(self.num_groups, self.dtype, EPS, name=f"norm{i}")(h)


class ConvNextBlock(Segment):
    """A 7x7 convolution per channel, time, norm, then two 3x3 convolutions, plus a shortcut."""

    features: int
    norm: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features, temb: Temb | None) -> Features:
        channels = x.shape[-1]
        h = conv(x, channels, 7, "depthwise", self.dtype, groups=channels)
        if temb is not None:
            h = h + dense(gelu(temb), channels, "temb_proj", self.dtype)[:, None, None, :]
        h = ChannelNorm(self.dtype, name="norm_in")(h) if self.norm else h
        h = gelu(conv(h, EXPANSION * self.features, 3, "expand", self.dtype))
        return add_shortcut(conv(h, self.features, 3, "project", self.dtype), x, self.dtype)


class Attention(Segment):
    """Attention after a norm, with a residual connection; its cost may be linear in the pixels.

    Linear attention after ResNet blocks also normalises its queries and its output.
    """

    blocks: str
    linear: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features) -> Features:
        b, height, width, channels = x.shape
        h = ChannelNorm(self.dtype, name="norm")(x)
        qkv = conv(h, 3 * HEADS * HEAD_DIM, 1, "qkv", self.dtype, use_bias=False)
        qkv = qkv.reshape(b, height * width, 3, HEADS, HEAD_DIM).transpose(2, 0, 3, 1, 4)
        h = self.attend(*qkv.reshape(3, b * HEADS, height * width, HEAD_DIM))
        h = h.reshape(b, HEADS, height, width, HEAD_DIM).transpose(0, 2, 3, 1, 4)
        h = h.reshape(b, height, width, HEADS * HEAD_DIM)
        h = conv(h, channels, 1, "proj_out", self.dtype)
        if self.linear and self.blocks == "resnet":
            h = ChannelNorm(self.dtype, name="norm_out")(h)
        return x + h

    def attend(
        self, q: Float[Array, "b n c"], k: Float[Array, "b n c"], v: Float[Array, "b n c"]
    ) -> Float[Array, "b n c"]:
        """Mix the values."""
        if not self.linear:
            return attention(q, k, v)
        return linear_attention(q, k, v) if self.blocks == "resnet" else mix_linearly(q, k, v)


def mix_linearly(
    q: Float[Array, "b n c"], k: Float[Array, "b n c"], v: Float[Array, "b n c"]
) -> Float[Array, "b n c"]:
    """q / sqrt(c) (softmax_n(k)^T v), softmax and sums in float32 or better."""
    wide = statistics_dtype(q.dtype)
    k = jax.nn.softmax(k.astype(wide), axis=-2).astype(v.dtype)
    context = contract("bnc,bnd->bcd", k, v).astype(v.dtype)
    scaled = q * q.shape[-1] ** -0.5
    return contract("bnc,bcd->bnd", scaled, context).astype(v.dtype)


class TimeEmbedding(nn.Module):
    """Sines and cosines of t, then two dense layers with GELU between."""

    dim: int
    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, t: Num[Array, " b"]) -> Temb:
        h = timestep_embedding(t, self.dim, statistics_dtype(self.dtype))
        h = gelu(dense(h, 4 * self.dim, "dense_0", self.dtype))
        return dense(h, self.features, "dense_1", self.dtype)


class Stage(nn.Module):
    """What the stages share: one resolution, with blocks of one width and one attention."""

    config: LucidrainsV0Config
    features: int
    dtype: Dtype

    def block(self, x: Features, temb: Temb | None, name: str, *, norm: bool = True) -> Features:
        """Apply the block called `name`."""
        made = self.config.make_block(self.features, name, self.dtype, norm=norm)
        out: Features = made(x, temb)
        return out

    def attend(self, x: Features, *, linear: bool = True) -> Features:
        """Apply the stage's one attention."""
        return Attention(self.config.blocks, linear, self.dtype, name="attn_1")(x)


class DownStage(Stage):
    """One resolution of the contracting path, and the halving that follows unless it is `last`."""

    first: bool
    last: bool

    @nn.compact
    def __call__(self, h: Features, temb: Temb | None) -> tuple[Features, Features]:
        """The skip connection, and the input of the next stage."""
        h = self.block(h, temb, "block_0", norm=not self.first)
        h = self.attend(self.block(h, temb, "block_1"))
        if self.last:
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
    """Block, attention, block at the lowest resolution."""

    @nn.compact
    def __call__(self, h: Features, temb: Temb | None) -> Features:
        linear = not self.config.full_mid_attention
        h = self.attend(self.block(h, temb, "block_1"), linear=linear)
        return self.block(h, temb, "block_2")


class LucidrainsV0UNet(NetworkModule):
    """lucidrains' first U-Nets.

    Stage i works at 1/2^i of the image's size with dim * dim_mults[i] channels. The first stage's
    skip connection is never used, as published: its resolution has no expanding stage.
    """

    config: LucidrainsV0Config

    def forward(
        self, x_t: Features, t: Num[Array, " b"], label: None, dropout_keys: DropoutKeys
    ) -> Features:
        config, last, dtype = self.config, len(self.config.dim_mults) - 1, self.dtype
        convnext, h, temb = config.blocks == "convnext", x_t, None
        if config.with_time_emb:
            features = config.dim if convnext else 4 * config.dim
            temb = TimeEmbedding(config.dim, features, dtype, name="temb")(t)
        if not convnext:
            h = conv(h, config.stem, 7, "conv_in", dtype)
        sizes = [config.dim * mult for mult in config.dim_mults]
        skips = []
        for i, size in enumerate(sizes):
            skip, h = DownStage(config, size, dtype, i == 0, i == last, name=f"down_{i}")(h, temb)
            skips.append(skip)
        h = Middle(config, sizes[-1], dtype, name="mid")(h, temb)
        for i in range(last, 0, -1):
            h = UpStage(config, sizes[i - 1], dtype, name=f"up_{i}")(h, skips[i], temb)
        h = config.make_block(config.dim, "block_out", dtype)(h, None)
        return conv(h, self.out_channels, 1, "conv_out", dtype)
