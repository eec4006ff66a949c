"""The blocks of OpenAI's U-Net (Nichol & Dhariwal 2021)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jax_ddpm.models.initializers import zeros
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
    upsample_nearest,
)

NUM_GROUPS = 32
EPS = 1e-5  # of the norms: PyTorch's default


def norm(h: Features, name: str, dtype: Dtype) -> Features:
    """Group normalisation with 32 groups, statistics in float32 or better."""
    return GroupNorm(NUM_GROUPS, dtype, EPS, name=name)(h)


class ResBlock(Segment):
    """Two normalised 3x3 convolutions, the time between them, and a shortcut.

    The time shifts the features, or with `scale_shift` scales and shifts the second norm's output.
    `resample` changes the resolution of both branches, in the main one after the first norm.
    """

    features: int
    dropout: float
    scale_shift: bool
    resample: Callable[[Features], Features] | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features, temb: Temb, dropout_keys: DropoutKeys = None) -> Features:
        h = nn.silu(norm(x, "norm1", self.dtype))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = conv(h, self.features, 3, "conv1", self.dtype)
        width = 2 * self.features if self.scale_shift else self.features
        shift = dense(nn.silu(temb), width, "temb_proj", self.dtype)[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(shift, 2, axis=-1)
            h = norm(h, "norm2", self.dtype) * (1 + scale) + shift
        else:
            h = norm(h + shift, "norm2", self.dtype)
        h = Dropout(self.dropout, name="dropout")(nn.silu(h), dropout_keys)
        h = conv(h, self.features, 3, "conv2", self.dtype, init=zeros)
        if x.shape[-1] != self.features:
            x = conv(x, self.features, 1, "shortcut", self.dtype)
        return x + h


class AttentionBlock(Segment):
    """Multi-head self-attention over all pixels with a residual connection.

    With `qkv_first` (`use_new_attention_order`) the projection's channels are queries, keys and
    values, each with all heads. Otherwise they are heads, each with its query, key and value.
    """

    num_heads: int
    qkv_first: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features) -> Features:
        b, height, width, c = x.shape
        h = norm(x, "norm", self.dtype).reshape(b, height * width, c)  # [b, n, c]
        qkv = dense(h, 3 * c, "qkv", self.dtype)  # [b, n, 3c]
        split = (3, self.num_heads) if self.qkv_first else (self.num_heads, 3)
        qkv = qkv.reshape(b, height * width, *split, c // self.num_heads)
        q, k, v = jnp.moveaxis(qkv, 2 if self.qkv_first else 3, 0)  # each [b, n, heads, c/heads]
        # theirs scales queries and keys by (c/heads)^-1/4 each: the same but for rounding
        h = jax.vmap(attention, in_axes=2, out_axes=2)(q, k, v)
        h = dense(h.reshape(b, height * width, c), c, "proj_out", self.dtype, init=zeros)
        return x + h.reshape(b, height, width, c)


class Downsample(nn.Module):
    """Half the resolution: a strided convolution, or the mean of 2x2 pixels."""

    use_conv: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, h: Features) -> Features:
        if not self.use_conv:
            return downsample_mean(h)
        return conv(h, h.shape[-1], 3, "downsample", self.dtype, stride=2)


class Upsample(nn.Module):
    """Twice the resolution: repeated pixels, then perhaps a convolution."""

    use_conv: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, h: Features) -> Features:
        h = upsample_nearest(h)
        return conv(h, h.shape[-1], 3, "upsample", self.dtype) if self.use_conv else h
