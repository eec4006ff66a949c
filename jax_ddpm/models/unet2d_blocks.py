"""The layers of diffusers' UNet2DModel, and the levels made of its plain blocks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from jax_ddpm.models.layers import (
    Dropout,
    Dtype,
    Features,
    GroupNorm,
    Segment,
    attention,
    statistics_dtype,
    torch_uniform,
    upsample_nearest,
)

FOURIER_SCALE = 16.0

Temb = Float[Array, "b e"]
DropoutKeys = Key[Array, " b"] | None
Resample = Callable[[Features], Features]
Resampler = Literal["conv", "resnet"]
TimeEmbeddingType = Literal["positional", "fourier", "learned"]
# What the levels hand on: the features, and the image that some blocks carry along.
Carried = tuple[Features, Features | None]

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}


def conv(
    x: Features,
    features: int,
    name: str,
    dtype: Dtype,
    *,
    size: int = 3,
    stride: int = 1,
    padding: tuple[int, int] = (1, 1),
) -> Features:
    """A square convolution of x; `padding` goes before and after, on both axes."""
    init = torch_uniform(size * size * x.shape[-1])
    layer = nn.Conv(
        features, (size, size), stride, padding=(padding, padding),
        kernel_init=init, bias_init=init, dtype=dtype, name=name,
    )  # fmt: skip
    return layer(x)


def dense(x: Array, features: int, name: str, dtype: Dtype, *, bias: bool = True) -> Array:
    """A linear map of the last axis: a fully connected layer, or a 1x1 convolution."""
    init = torch_uniform(x.shape[-1])
    layer = nn.Dense(
        features, use_bias=bias, kernel_init=init, bias_init=init, dtype=dtype, name=name
    )
    return layer(x)


def downsample_mean(x: Features) -> Features:
    """Halve height and width by averaging 2x2 pixels; an odd last row or column is left out."""
    b, height, width, c = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(b, height // 2, 2, width // 2, 2, c).mean((2, 4))


@dataclass(frozen=True)
class Style:
    """What the blocks of a network have in common."""

    num_groups: int | None
    eps: float
    act_fn: str
    dropout: float
    scale_shift: bool
    head_dim: int | None
    dtype: Dtype

    def act(self, x: Array) -> Array:
        """The activation function of the blocks."""
        return jnp.asarray(ACTIVATIONS[self.act_fn.lower()](x))

    def groups(self, channels: int) -> int:
        """Groups of a norm over `channels`; None means a quarter of them, at most 32."""
        return quarter_groups(channels) if self.num_groups is None else self.num_groups


def quarter_groups(channels: int) -> int:
    """Groups of four channels or more."""
    return min(channels // 4, 32)


class TimeProjection(nn.Module):
    """t as numbers: sines and cosines of t or of log t, or a row of a table."""

    kind: TimeEmbeddingType
    channels: int
    freq_shift: float
    flip_sin_to_cos: bool
    num_rows: int | None
    dtype: Dtype

    @nn.compact
    def __call__(self, t: Num[Array, " b"]) -> Float[Array, "b d"]:
        """The features of t."""
        wide = statistics_dtype(self.dtype)
        if self.kind == "learned":
            shape, init = (self.num_rows or 0, self.channels), nn.initializers.normal(1.0)
            table = self.param("embedding", init, shape, jnp.float32)
            return table.astype(self.dtype)[t.astype(jnp.int32)]
        t = t.astype(wide)
        if self.kind == "positional":
            return positional(t, self.channels, self.freq_shift, self.flip_sin_to_cos)
        init = nn.initializers.normal(FOURIER_SCALE)
        weight = self.param("weight", init, (self.channels,), jnp.float32)
        weight = jax.lax.stop_gradient(weight).astype(wide)  # as published, it is not trained
        angles = jnp.log(t)[:, None] * weight[None] * (2 * math.pi)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def positional(
    t: Float[Array, " b"], dim: int, freq_shift: float, flip_sin_to_cos: bool
) -> Float[Array, "b d"]:
    """Sines and cosines of t at dim/2 frequencies from 1 down; an odd `dim` ends in a zero."""
    half = dim // 2
    exponent = -math.log(10000) * jnp.arange(half, dtype=t.dtype) / (half - freq_shift)
    angles = t[:, None] * jnp.exp(exponent)[None, :]
    waves = [jnp.sin(angles), jnp.cos(angles)]
    embedding = jnp.concatenate(waves[::-1] if flip_sin_to_cos else waves, axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


class TwoLayers(nn.Module):
    """Two dense layers with SiLU between, whatever the activation of the blocks is."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x, transformed."""
        h = jax.nn.silu(dense(x, self.features, "dense_0", self.dtype))
        return dense(h, self.features, "dense_1", self.dtype)


class ResnetBlock(Segment):
    """Two normalised convolutions, the time embedding between them, and a shortcut.

    The time embedding shifts (before the second norm) or scales and shifts (after it). `resample`
    is applied to both branches before the first convolution. The sum is divided by `scale`.
    """

    features: int
    style: Style
    groups: tuple[int, int] | None = None
    scale: float = 1.0
    resample: Resample | None = None
    always_shortcut: bool = False

    @nn.compact
    def __call__(self, x: Features, temb: Temb, keys: DropoutKeys) -> Features:
        """Features x at the time embedding temb; dropout where there are keys."""
        style, dtype = self.style, self.style.dtype
        first, second = self.groups or (style.groups(x.shape[-1]), style.groups(self.features))
        h = style.act(GroupNorm(first, dtype, style.eps, name="norm1")(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = conv(h, self.features, "conv1", dtype)
        width = self.features * (2 if style.scale_shift else 1)
        time = dense(style.act(temb), width, "temb_proj", dtype)[:, None, None, :]
        norm2 = GroupNorm(second, dtype, style.eps, name="norm2")
        if style.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = norm2(h) * (1 + scale) + shift
        else:
            h = norm2(h + time)
        h = Dropout(style.dropout, name="dropout")(style.act(h), keys)
        h = conv(h, self.features, "conv2", dtype)
        if self.always_shortcut or x.shape[-1] != self.features:
            x = dense(x, self.features, "shortcut", dtype)
        return (x + h) / self.scale


class Attention(Segment):
    """Self-attention over all pixels, with heads of `style.head_dim` channels (None: one head).

    Where this does not divide the channels, the heads together are narrower than they are.
    """

    style: Style
    groups: int | None
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """x plus what it gathers from all its pixels, divided by `scale`."""
        b, height, width, c = x.shape
        dtype, size = self.style.dtype, self.style.head_dim or c
        num_heads = c // size
        h = x
        if self.groups is not None:
            h = GroupNorm(self.groups, dtype, self.style.eps, name="norm")(x)
        h = h.reshape(b, height * width, c)  # [b, n, c]

        def heads(name: str) -> Array:
            y = dense(h, num_heads * size, name, dtype).reshape(b, -1, num_heads, size)
            return y.swapaxes(1, 2).reshape(b * num_heads, -1, size)

        y = attention(heads("q"), heads("k"), heads("v")).reshape(b, num_heads, -1, size)
        y = y.swapaxes(1, 2).reshape(b, -1, num_heads * size)
        y = dense(y, c, "proj_out", dtype)
        return (y.reshape(b, height, width, c) + x) / self.scale


class DownLevel(nn.Module):
    """One resolution of the contracting path: DownBlock2D and its like."""

    features: int
    num_blocks: int
    attention: bool
    downsample: Resampler | None
    padding: tuple[int, int]
    style: Style

    @nn.compact
    def __call__(
        self, h: Features, image: Features | None, temb: Temb, keys: DropoutKeys
    ) -> tuple[Carried, list[Features]]:
        """What goes on, and the outputs that the other path sees again."""
        outputs = []
        for i in range(self.num_blocks):
            h = ResnetBlock(self.features, self.style, name=f"block_{i}")(h, temb, keys)
            if self.attention:
                groups = self.style.groups(self.features)
                h = Attention(self.style, groups, name=f"attn_{i}")(h)
            outputs.append(h)
        match self.downsample:
            case "conv":
                h = conv(
                    h, self.features, "downsample", self.style.dtype, stride=2, padding=self.padding
                )
                outputs.append(h)
            case "resnet":
                block = ResnetBlock(
                    self.features, self.style, resample=downsample_mean, name="downsample_block"
                )
                outputs.append(block(h, temb, keys))
        return (outputs[-1], image), outputs


class UpLevel(nn.Module):
    """One resolution of the expanding path: UpBlock2D and its like."""

    features: int
    num_blocks: int
    attention: bool
    upsample: Resampler | None
    style: Style

    @nn.compact
    def __call__(
        self,
        h: Features,
        image: Features | None,
        skips: list[Features],
        temb: Temb,
        keys: DropoutKeys,
    ) -> Carried:
        """h after one block per skip connection, the last of `skips` first."""
        for i, skip in enumerate(reversed(skips)):
            h = jnp.concatenate([h, skip], axis=-1)
            h = ResnetBlock(self.features, self.style, name=f"block_{i}")(h, temb, keys)
            if self.attention:
                groups = self.style.groups(self.features)
                h = Attention(self.style, groups, name=f"attn_{i}")(h)
        match self.upsample:
            case "conv":
                h = conv(upsample_nearest(h), self.features, "upsample", self.style.dtype)
            case "resnet":
                block = ResnetBlock(
                    self.features, self.style, resample=upsample_nearest, name="upsample_block"
                )
                h = block(h, temb, keys)
        return h, image


class Middle(nn.Module):
    """ResNet block, attention perhaps, ResNet block; every sum is divided by `scale`."""

    style: Style
    attention: bool
    attn_groups: int | None
    scale: float

    @nn.compact
    def __call__(self, h: Features, temb: Temb, keys: DropoutKeys) -> Features:
        """h, transformed."""
        args = (h.shape[-1], self.style, None, self.scale)
        h = ResnetBlock(*args, name="block_1")(h, temb, keys)
        if self.attention:
            h = Attention(self.style, self.attn_groups, self.scale, name="attn_1")(h)
        return ResnetBlock(*args, name="block_2")(h, temb, keys)
