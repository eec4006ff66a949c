"""The layers of OpenAI's U-Net (Nichol & Dhariwal 2021), every default of PyTorch spelled out."""

import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Real

from jax_ddpm.models.layers import (
    Dropout,
    Features,
    GroupNorm,
    Segment,
    attention,
    statistics_dtype,
    torch_uniform,
    upsample_nearest,
)

Temb = Float[Array, "b e"]
DropoutKeys = Key[Array, " b"] | None
Resample = Literal["down", "up"]

NUM_GROUPS = 32
EPS = 1e-5  # of the norms

# 1/sqrt(fan_in) times a uniform number in [-1, 1): PyTorch's initial kernels
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def initializers(fan_in: int, zero: bool) -> dict[str, Any]:
    """PyTorch's initial kernel and bias; or zeros, for layers whose output starts at zero."""
    if zero:
        return {"kernel_init": nn.initializers.zeros, "bias_init": nn.initializers.zeros}
    return {"kernel_init": KERNEL_INIT, "bias_init": torch_uniform(fan_in)}


def conv(
    h: Features,
    features: int,
    name: str,
    dtype: Any,
    *,
    size: int = 3,
    stride: int = 1,
    zero: bool = False,
) -> Features:
    """A square convolution of odd `size`, with as many zeros on every side as keep the resolution.

    With stride 2 the zeros below and on the right of an image with even sides are never reached.
    """
    layer = nn.Conv(
        features,
        (size, size),
        stride,
        padding=size // 2,
        dtype=dtype,
        name=name,
        **initializers(size**2 * h.shape[-1], zero),
    )
    return layer(h)


def dense(h: Array, features: int, name: str, dtype: Any, *, zero: bool = False) -> Array:
    """A linear map of the last axis."""
    return nn.Dense(features, dtype=dtype, name=name, **initializers(h.shape[-1], zero))(h)


def norm(h: Features, name: str, dtype: Any) -> Features:
    """Group normalisation with 32 groups, statistics in float32 or better."""
    return GroupNorm(NUM_GROUPS, dtype, EPS, name=name)(h)


def timestep_embedding(t: Real[Array, " b"], dim: int, dtype: Any) -> Float[Array, "b d"]:
    """Cosines, then sines, of t (whole or not) at dim/2 frequencies from 1 down to almost 1e-4.

    The exponent's denominator is dim/2; an odd `dim` ends in a zero.
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=dtype) / half)
    angles = t.astype(dtype)[:, None] * frequencies[None, :]  # [b, dim/2]
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of t, then two dense layers with SiLU between."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, t: Real[Array, " b"]) -> Float[Array, "b 4*c"]:
        """The embedding of t."""
        h = timestep_embedding(t, self.channels, statistics_dtype(self.dtype))
        h = dense(h, 4 * self.channels, "dense_0", self.dtype)
        return dense(nn.silu(h), 4 * self.channels, "dense_1", self.dtype)


def resample(h: Features, how: Resample | None) -> Features:
    """Halve height and width by the mean of 2x2 pixels, double them by repeating pixels, or none.

    An odd last row or column is dropped by the mean.
    """
    match how:
        case "down":
            return nn.avg_pool(h, (2, 2), (2, 2))
        case "up":
            return upsample_nearest(h)
        case None:
            return h


class ResBlock(Segment):
    """Two normalised 3x3 convolutions that learn of the time in between, plus a shortcut.

    The time shifts the features, or with `scale_shift` scales and shifts the second norm's output.
    `resampling` changes the resolution of both branches, in the main one after the first norm.
    """

    features: int
    dropout: float
    scale_shift: bool
    resampling: Resample | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features, temb: Temb, dropout_keys: DropoutKeys = None) -> Features:
        """Features x at the time embedding temb; dropout where there are keys."""
        h = resample(nn.silu(norm(x, "norm1", self.dtype)), self.resampling)
        x = resample(x, self.resampling)
        h = conv(h, self.features, "conv1", self.dtype)
        width = 2 * self.features if self.scale_shift else self.features
        shift = dense(nn.silu(temb), width, "temb_proj", self.dtype)[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(shift, 2, axis=-1)
            h = norm(h, "norm2", self.dtype) * (1 + scale) + shift
        else:
            h = norm(h + shift, "norm2", self.dtype)
        h = Dropout(self.dropout, name="dropout")(nn.silu(h), dropout_keys)
        h = conv(h, self.features, "conv2", self.dtype, zero=True)
        if x.shape[-1] != self.features:
            x = conv(x, self.features, "shortcut", self.dtype, size=1)
        return x + h


class AttentionBlock(Segment):
    """Multi-head self-attention over all pixels with a residual connection.

    `qkv_first`: the channels of the projection are queries, keys, values, each with all heads
    (`use_new_attention_order`); else they are heads, each with its query, key and value.
    """

    num_heads: int
    qkv_first: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """x plus what it gathers from all its pixels."""
        b, height, width, c = x.shape
        h = norm(x, "norm", self.dtype).reshape(b, height * width, c)  # [b, n, c]
        qkv = dense(h, 3 * c, "qkv", self.dtype)  # [b, n, 3c]
        split = (3, self.num_heads) if self.qkv_first else (self.num_heads, 3)
        qkv = qkv.reshape(b, height * width, *split, c // self.num_heads)
        q, k, v = jnp.moveaxis(qkv, 2 if self.qkv_first else 3, 0)  # each [b, n, heads, c/heads]
        # theirs scales queries and keys by (c/heads)^-1/4 each: the same but for rounding
        h = jax.vmap(attention, in_axes=2, out_axes=2)(q, k, v)
        h = dense(h.reshape(b, height * width, c), c, "proj_out", self.dtype, zero=True)
        return x + h.reshape(b, height, width, c)


class Downsample(nn.Module):
    """Half the resolution: a convolution with stride 2, or the mean of 2x2 pixels."""

    use_conv: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Features) -> Features:
        """As many channels as h."""
        if not self.use_conv:
            return resample(h, "down")
        return conv(h, h.shape[-1], "downsample", self.dtype, stride=2)


class Upsample(nn.Module):
    """Twice the resolution: pixels repeated, then perhaps a convolution."""

    use_conv: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Features) -> Features:
        """As many channels as h."""
        h = resample(h, "up")
        return conv(h, h.shape[-1], "upsample", self.dtype) if self.use_conv else h
