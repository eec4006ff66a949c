"""The layers of diffusers' UNet2DModel, and the levels made of its plain blocks."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jax_ddpm.models.initializers import normal
from jax_ddpm.models.layers import (
    Dropout,
    DropoutKeys,
    Dtype,
    Features,
    GroupNorm,
    Segment,
    Temb,
    attention,
    conv,
    dense,
    downsample_mean,
    gelu,
    statistics_dtype,
    timestep_embedding,
    upsample_nearest,
)

FOURIER_SCALE = 16.0

ResampleFn = Callable[[Features], Features]
ResampleType = Literal["conv", "resnet"]
TimeEmbeddingType = Literal["positional", "fourier", "learned"]
# What a stage hands on: the features, and the image that some blocks carry along.
Carried = tuple[Features, Features | None]

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": gelu,
    "relu": jax.nn.relu,
}


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
        """Apply the activation function of the blocks."""
        return jnp.asarray(ACTIVATIONS[self.act_fn.lower()](x))

    def count_groups(self, channels: int) -> int:
        """Groups of a norm over `channels`: by default a quarter of them, at most 32."""
        return count_quarter_groups(channels) if self.num_groups is None else self.num_groups


def count_quarter_groups(channels: int) -> int:
    """At most 32 groups, of four channels or more."""
    return min(channels // 4, 32)


class TimeProjection(nn.Module):
    """Map t to numbers: sines and cosines of t or of log t, or a row of a table."""

    kind: TimeEmbeddingType
    channels: int
    freq_shift: float
    flip_sin_to_cos: bool
    num_rows: int | None
    dtype: Dtype

    @nn.compact
    def __call__(self, t: Num[Array, " b"]) -> Float[Array, "b d"]:
        wide = statistics_dtype(self.dtype)
        if self.kind == "learned":
            shape, init = (self.num_rows or 0, self.channels), normal(1.0)
            table = self.param("embedding", init, shape, jnp.float32)
            return table.astype(self.dtype)[t.astype(jnp.int32)]
        if self.kind == "positional":
            denominator = self.channels // 2 - self.freq_shift
            cos_first = self.flip_sin_to_cos
            return timestep_embedding(
                t, self.channels, wide, denominator=denominator, cos_first=cos_first
            )
        init = normal(FOURIER_SCALE)
        weight = self.param("weight", init, (self.channels,), jnp.float32)
        weight = jax.lax.stop_gradient(weight).astype(wide)  # as published, it is not trained
        angles = jnp.log(t.astype(wide))[:, None] * weight[None] * (2 * math.pi)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ResnetBlock(Segment):
    """Two normalised convolutions, the time embedding between them, and a shortcut.

    The time embedding shifts (before the second norm) or scales and shifts (after it). `resample`
    is applied to both branches before the first convolution. The sum is divided by `scale`.
    """

    features: int
    style: Style
    groups: tuple[int, int] | None = None
    scale: float = 1.0
    resample: ResampleFn | None = None
    always_shortcut: bool = False

    @nn.compact
    def __call__(self, x: Features, temb: Temb, keys: DropoutKeys) -> Features:
        style, dtype = self.style, self.style.dtype
        first, second = self.groups or map(style.count_groups, (x.shape[-1], self.features))
        h = style.act(GroupNorm(first, dtype, style.eps, name="norm1")(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = conv(h, self.features, 3, "conv1", dtype)
        width = self.features * (2 if style.scale_shift else 1)
        time = dense(style.act(temb), width, "temb_proj", dtype)[:, None, None, :]
        norm2 = GroupNorm(second, dtype, style.eps, name="norm2")
        if style.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = norm2(h) * (1 + scale) + shift
        else:
            h = norm2(h + time)
        h = Dropout(style.dropout, name="dropout")(style.act(h), keys)
        h = conv(h, self.features, 3, "conv2", dtype)
        if self.always_shortcut or x.shape[-1] != self.features:
            x = dense(x, self.features, "shortcut", dtype)
        return (x + h) / self.scale


class Attention(Segment):
    """Self-attention over all pixels, with heads of `style.head_dim` channels (None: one head).

    If `head_dim` does not divide the channels, the heads together are narrower.
    """

    style: Style
    groups: int | None
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Features) -> Features:
        b, height, width, c = x.shape
        dtype, size = self.style.dtype, self.style.head_dim or c
        num_heads = c // size
        h = x
        if self.groups is not None:
            h = GroupNorm(self.groups, dtype, self.style.eps, name="norm")(x)
        h = h.reshape(b, height * width, c)  # [b, n, c]

        def project(name: str) -> Array:
            y = dense(h, num_heads * size, name, dtype).reshape(b, -1, num_heads, size)
            return y.swapaxes(1, 2).reshape(b * num_heads, -1, size)

        y = attention(project("q"), project("k"), project("v")).reshape(b, num_heads, -1, size)
        y = y.swapaxes(1, 2).reshape(b, -1, num_heads * size)
        y = dense(y, c, "proj_out", dtype)
        return (y.reshape(b, height, width, c) + x) / self.scale


class DownStage(nn.Module):
    """One resolution of the contracting path: DownBlock2D and its like."""

    features: int
    num_blocks: int
    attention: bool
    downsample: ResampleType | None
    padding: tuple[int, int]
    style: Style

    @nn.compact
    def __call__(
        self, h: Features, image: Features | None, temb: Temb, keys: DropoutKeys
    ) -> tuple[Carried, list[Features]]:
        """What goes on, and the skip connections."""
        features, style, outputs = self.features, self.style, []
        for i in range(self.num_blocks):
            h = apply_block(h, features, style, self.attention, i, temb, keys)
            outputs.append(h)
        match self.downsample:
            case "conv":
                args = (features, 3, "downsample", style.dtype)
                outputs.append(conv(h, *args, stride=2, padding=self.padding))
            case "resnet":
                block = ResnetBlock(
                    features, style, resample=downsample_mean, name="downsample_block"
                )
                outputs.append(block(h, temb, keys))
        return (outputs[-1], image), outputs


class UpStage(nn.Module):
    """One resolution of the expanding path: UpBlock2D and its like."""

    features: int
    num_blocks: int
    attention: bool
    upsample: ResampleType | None
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
        """Apply one block per skip connection, the last of `skips` first."""
        features, style = self.features, self.style
        for i, skip in enumerate(reversed(skips)):
            h = jnp.concatenate([h, skip], axis=-1)
            h = apply_block(h, features, style, self.attention, i, temb, keys)
        match self.upsample:
            case "conv":
                h = conv(upsample_nearest(h), features, 3, "upsample", style.dtype)
            case "resnet":
                block = ResnetBlock(
                    features, style, resample=upsample_nearest, name="upsample_block"
                )
                h = block(h, temb, keys)
        return h, image


def apply_block(
    h: Features, features: int, style: Style, attend: bool, i: int, temb: Temb, keys: DropoutKeys
) -> Features:
    """ResNet block number `i` of a stage, and its attention if it has one."""
    h = ResnetBlock(features, style, name=f"block_{i}")(h, temb, keys)
    return Attention(style, style.count_groups(features), name=f"attn_{i}")(h) if attend else h


class Middle(nn.Module):
    """ResNet block, attention perhaps, ResNet block; every sum is divided by `scale`."""

    style: Style
    attention: bool
    attn_groups: int | None
    scale: float

    @nn.compact
    def __call__(self, h: Features, temb: Temb, keys: DropoutKeys) -> Features:
        args = (h.shape[-1], self.style, None, self.scale)
        h = ResnetBlock(*args, name="block_1")(h, temb, keys)
        if self.attention:
            h = Attention(self.style, self.attn_groups, self.scale, name="attn_1")(h)
        return ResnetBlock(*args, name="block_2")(h, temb, keys)
