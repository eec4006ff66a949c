"""The tutorial U-Net of "The Annotated Diffusion Model" (Rogge & Rasul, June 2022).

Its notebook and its text differ in the norm; the EPITA practical has the network of the notebook.
The later text has another network, annotated_ws.py.
"""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_ddpm.models.base import Architecture, ImageShape, require, require_positive
from jax_ddpm.models.layers import (
    Dtype,
    Features,
    GroupNorm,
    Segment,
    attention,
    statistics_dtype,
    timestep_embedding,
    torch_uniform,
)

Temb = Float[Array, "b e"]
Norm = Literal["group", "layer"]

EPS = 1e-5  # of every norm: PyTorch's default
HEADS, HEAD_DIM = 4, 32  # of every attention, whatever the width


@dataclass(frozen=True)
class AnnotatedConfig(Architecture):
    """The U-Net of the Annotated Diffusion Model (June 2022) and of the EPITA practical."""

    dim: int = 28
    """Channels of the first level; the time embedding has four times as many."""
    init_dim: int | None = None
    """Channels of the first convolution; None: 2 * (dim // 3)."""
    out_dim: int | None = None
    """Channels of the output; None: those of the data, twice as many with a learned variance."""
    dim_mults: tuple[int, ...] = (1, 2, 4)
    """Channels of each level, as multiples, the first 1; each level halves the resolution."""
    channels: int | None = None
    """Channels of the images; None: those of the data."""
    with_time_emb: bool = True
    """Tell the network the timestep."""
    resnet_block_groups: int = 8
    """Groups of the group normalisation in ResNet blocks."""
    use_convnext: bool = True
    """ConvNeXt blocks; off: ResNet blocks."""
    convnext_mult: int = 2
    """How much wider a ConvNeXt block is inside."""
    norm: Norm = "group"
    """Outside ResNet blocks. group: one group of all channels, as in the notebook. layer: each
    pixel's channels, as in the text."""

    def module(self, out_channels: int, dtype: Any) -> "AnnotatedUNet":
        """The Linen module; see the base class."""
        return AnnotatedUNet(self, self.out_dim or out_channels, dtype)

    def check(self) -> None:
        """Raise ValueError for the first setting that cannot work."""
        check_widths(self.dim, self.dim_mults, embeds_time=self.with_time_emb)
        require_positive(self, "out_dim", "channels")
        stem = self.dim // 3 * 2 if self.init_dim is None else self.init_dim
        require(stem >= 1, "init-dim", self.init_dim, "at least 1")
        mult = self.dim_mults
        require(mult[0] == 1, "dim-mults", mult, "1 at the first level: the last block has dim")
        require(self.convnext_mult >= 1, "convnext-mult", self.convnext_mult, "at least 1")
        if not self.use_convnext:
            check_groups(self.resnet_block_groups, self.dim)

    @property
    def example_shape(self) -> ImageShape:
        """An image of the network."""
        side = 2 ** (len(self.dim_mults) - 1)
        return side, side, self.channels or 3


def check_widths(dim: int, dim_mults: tuple[int, ...], *, embeds_time: bool = True) -> None:
    """Raise ValueError unless sinusoids fill `dim` (two frequencies or more), and levels exist."""
    if embeds_time:
        require(dim >= 4 and dim % 2 == 0, "dim", dim, "an even number, at least 4")
    require(dim >= 1, "dim", dim, "at least 1")
    require(bool(dim_mults) and min(dim_mults) >= 1, "dim-mults", dim_mults, "positive numbers")


def check_groups(groups: int, dim: int) -> None:
    """Raise ValueError unless the norms' groups divide `dim`, and with it all its multiples."""
    divides = groups >= 1 and dim % groups == 0
    require(divides, "resnet-block-groups", groups, f"a divisor of dim {dim}")


def conv(
    x: Features, features: int, size: int, name: str, dtype: Dtype, *,
    stride: int = 1, groups: int = 1, use_bias: bool = True,
) -> Features:  # fmt: skip
    """Convolve x, padded alike on all four sides, so that only the stride changes its size."""
    padding = (size - stride) // 2
    init = torch_uniform(size**2 * x.shape[-1] // groups)
    return nn.Conv(
        features, (size, size), stride, padding=padding, feature_group_count=groups,
        use_bias=use_bias, kernel_init=init, bias_init=init, dtype=dtype, name=name,
    )(x)  # fmt: skip


def dense(x: Float[Array, "b i"], features: int, name: str, dtype: Dtype) -> Float[Array, "b o"]:
    """A fully connected layer on x."""
    init = torch_uniform(x.shape[-1])
    return nn.Dense(features, kernel_init=init, bias_init=init, dtype=dtype, name=name)(x)


def gelu(x: Array) -> Array:
    """The exact one, with the error function (JAX's default is an approximation)."""
    return nn.gelu(x, approximate=False)


def add_shortcut(h: Features, x: Features, dtype: Dtype) -> Features:
    """h + x, x through a 1x1 convolution where the channels differ."""
    return h + (x if x.shape[-1] == h.shape[-1] else conv(x, h.shape[-1], 1, "shortcut", dtype))


class ChannelNorm(nn.Module):
    """Layer normalisation of each pixel's channels; statistics in float32 or better."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Normalise x."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        wide = x.astype(statistics_dtype(self.dtype))
        centred = wide - wide.mean(-1, keepdims=True)
        y = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
        scale, bias = (a.astype(wide.dtype)[None, None, None] for a in (scale, bias))
        y = y * scale + bias
        return y.astype(self.dtype)


def normalise(x: Features, norm: Norm, name: str, dtype: Dtype) -> Features:
    """Normalise x over its channels, and over its pixels where `norm` is "group"."""
    if norm == "layer":
        return ChannelNorm(dtype, name=name)(x)
    return GroupNorm(1, dtype, EPS, name=name)(x)


class TimeMLP(nn.Module):
    """Sinusoidal embedding of t, then two dense layers with GELU between."""

    dim: int
    dtype: Dtype

    @nn.compact
    def __call__(self, t: Int[Array, " b"]) -> Temb:
        """The embedding of t."""
        h = timestep_embedding(t, self.dim, statistics_dtype(self.dtype))
        h = dense(h, 4 * self.dim, "dense_0", self.dtype)
        return dense(gelu(h), 4 * self.dim, "dense_1", self.dtype)


class ResnetBlock(Segment):
    """Two blocks of convolution, group norm and SiLU, plus a shortcut; time comes between them."""

    features: int
    num_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features, temb: Temb | None) -> Features:
        """Features x at the time embedding temb."""
        h = self.block(x, 1)
        if temb is not None:
            h = h + dense(nn.silu(temb), self.features, "temb_proj", self.dtype)[:, None, None, :]
        return add_shortcut(self.block(h, 2), x, self.dtype)

    def block(self, x: Features, i: int) -> Features:
        """Block number `i`."""
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
        """Features x at the time embedding temb."""
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
        """x plus what it gathers from all its pixels."""
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
    context = jnp.einsum("bmc,bmd->bcd", k, v, preferred_element_type=wide).astype(v.dtype)
    return jnp.einsum("bnc,bcd->bnd", q, context, preferred_element_type=wide).astype(v.dtype)


class Part(nn.Module):
    """What the parts of the network share: their width, and the kind of their blocks."""

    config: AnnotatedConfig
    features: int
    dtype: Any

    def block(self, x: Features, temb: Temb | None, name: str) -> Features:
        """The block called `name`."""
        return make_block(self.config, self.features, name, self.dtype)(x, temb)

    def attention(self, x: Features, *, linear: bool = True) -> Features:
        """The part's one attention."""
        return Attention(linear, self.config.norm, self.dtype, name="attn_1")(x)


def make_block(config: AnnotatedConfig, features: int, name: str, dtype: Dtype) -> nn.Module:
    """The block that `config` asks for."""
    if config.use_convnext:
        return ConvNextBlock(features, config.convnext_mult, config.norm, dtype, name=name)
    return ResnetBlock(features, config.resnet_block_groups, dtype, name=name)


class DownLevel(Part):
    """One resolution of the contracting path."""

    downsample: bool

    @nn.compact
    def __call__(self, h: Features, temb: Temb | None) -> tuple[Features, Features]:
        """The level's output, for the other path, and what the next level works on."""
        h = self.block(h, temb, "block_0")
        h = self.attention(self.block(h, temb, "block_1"))
        if not self.downsample:
            return h, h
        return h, conv(h, self.features, 4, "downsample", self.dtype, stride=2)


class UpLevel(Part):
    """One resolution of the expanding path, and the step to the next: always a doubling."""

    @nn.compact
    def __call__(self, h: Features, skip: Features, temb: Temb | None) -> Features:
        """h, with the level's output of the contracting path, at twice the resolution."""
        h = self.block(jnp.concatenate([h, skip], axis=-1), temb, "block_0")
        h = self.attention(self.block(h, temb, "block_1"))
        init = torch_uniform(4**2 * self.features)
        # 2 = 4 - 1 - 1: what PyTorch's padding of 1 leaves of a full transposed convolution
        return nn.ConvTranspose(
            self.features, (4, 4), (2, 2), padding=((2, 2), (2, 2)), transpose_kernel=True,
            kernel_init=init, bias_init=init, dtype=self.dtype, name="upsample",
        )(h)  # fmt: skip


class Middle(Part):
    """Block, full attention, block at the lowest resolution."""

    @nn.compact
    def __call__(self, h: Features, temb: Temb | None) -> Features:
        """h, transformed."""
        h = self.attention(self.block(h, temb, "block_1"), linear=False)
        return self.block(h, temb, "block_2")


class AnnotatedUNet(nn.Module):
    """The U-Net of the Annotated Diffusion Model (June 2022) and of the EPITA practical.

    Level i works at 1/2^i of the image's size with dim * dim_mults[i] channels. The first level's
    output is kept but never used, as published: its resolution has no expanding level.
    """

    config: AnnotatedConfig
    out_channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_t: Features,
        t: Int[Array, " b"],
        *,
        train: bool = False,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Features:
        """The raw output [b, h, w, out_channels], float32 or better, for images x_t at timesteps t.

        An odd side comes out one pixel shorter, as published; nothing depends on `train`.
        """
        config, last = self.config, len(self.config.dim_mults) - 1
        check_sides(x_t, last)
        temb = TimeMLP(config.dim, self.dtype, name="temb")(t) if config.with_time_emb else None
        stem = config.dim // 3 * 2 if config.init_dim is None else config.init_dim
        h = conv(x_t.astype(self.dtype), stem, 7, "conv_in", self.dtype)
        sizes = [config.dim * mult for mult in config.dim_mults]
        skips = []
        for i, size in enumerate(sizes):
            skip, h = DownLevel(config, size, self.dtype, i < last, name=f"down_{i}")(h, temb)
            skips.append(skip)
        h = Middle(config, sizes[-1], self.dtype, name="mid")(h, temb)
        for i in range(last, 0, -1):
            h = UpLevel(config, sizes[i - 1], self.dtype, name=f"up_{i}")(h, skips[i], temb)
        h = make_block(config, config.dim, "block_out", self.dtype)(h, None)
        h = conv(h, self.out_channels, 1, "conv_out", self.dtype)
        return h.astype(statistics_dtype(self.dtype))


def check_sides(x_t: Features, halvings: int) -> None:
    """Raise ValueError unless both sides, rounded down to even ones, halve so many times."""
    if any(side // 2 % 2 ** max(halvings - 1, 0) or side < 2**halvings for side in x_t.shape[1:3]):
        height, width = x_t.shape[1:3]
        raise ValueError(
            f"this network has {halvings + 1} levels and takes images whose sides are multiples of "
            f"{2**halvings}, not {height}x{width}: choose another size or fewer --model.dim-mults"
        )
