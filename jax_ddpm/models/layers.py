"""The layers of the U-Net, every default spelled out: frameworks differ in them silently."""

import math
import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

Features = Float[Array, "b h w c"]
Dtype = Any

# Ho et al. 2020 give layers whose output should start at zero a tiny scale instead.
ZERO_SCALE = 1e-10


def fan_avg_uniform(scale: float = 1.0) -> nn.initializers.Initializer:
    """Uniform variance scaling by the mean of fan-in and fan-out (the code of Ho et al. 2020)."""
    return nn.initializers.variance_scaling(scale, "fan_avg", "uniform")


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """Uniform within 1/sqrt(fan_in): PyTorch's default for kernels and for biases."""

    def init(key: Key[Array, ""], shape: Any, dtype: Any = jnp.float32, *_: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


def conv3x3(
    features: int, name: str, dtype: Dtype, *, stride: int = 1, scale: float = 1.0
) -> nn.Conv:
    """A 3x3 convolution; with stride 2 it pads below and on the right only (TensorFlow's SAME)."""
    padding = ((1, 1), (1, 1)) if stride == 1 else ((0, 1), (0, 1))
    init = fan_avg_uniform(scale)
    return nn.Conv(
        features, (3, 3), stride, padding=padding, kernel_init=init, dtype=dtype, name=name
    )


def dense(features: int, name: str, dtype: Dtype, *, scale: float = 1.0) -> nn.Dense:
    """A linear map of the last axis: a fully connected layer, or a 1x1 convolution."""
    return nn.Dense(features, kernel_init=fan_avg_uniform(scale), dtype=dtype, name=name)


def statistics_dtype(dtype: Dtype) -> Dtype:
    """The dtype of sums and softmax: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def timestep_embedding(
    t: Int[Array, " b"], dim: int, dtype: Dtype = jnp.float32
) -> Float[Array, "b d"]:
    """Sines, then cosines, of t at dim/2 frequencies from 1 to 1e-4 (Ho et al. 2020, appendix B).

    The exponent's denominator is dim/2 - 1, as in their code; an odd `dim` ends in a zero.
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(10000) / (half - 1) * jnp.arange(half, dtype=dtype))
    angles = t.astype(dtype)[:, None] * frequencies[None, :]  # [b, dim/2]
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


class Segment(nn.Module):
    """A part of a network that gradient checkpointing takes as a whole; see remat.py."""


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018), eps 1e-6; statistics in float32 or better.

    Sums per channel come first, then per group, then one multiply-add: two to four times as fast
    on a CPU as the textbook order.
    """

    num_groups: int
    dtype: Dtype = jnp.float32
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Normalise x over pixels and the channels of each group."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        wide = x.astype(statistics_dtype(self.dtype))
        mean = self._group_mean(wide.mean((1, 2)))  # [b, c]
        centred = wide - mean[:, None, None, :]
        variance = self._group_mean((centred**2).mean((1, 2)))  # [b, c]
        factor = scale.astype(wide.dtype)[None] * jax.lax.rsqrt(variance + self.eps)
        y = centred * factor[:, None, None, :] + bias.astype(wide.dtype)[None, None, None]
        return y.astype(self.dtype)

    def _group_mean(self, per_channel: Float[Array, "b c"]) -> Float[Array, "b c"]:
        b, c = per_channel.shape
        groups = per_channel.reshape(b, self.num_groups, c // self.num_groups)
        return jnp.repeat(groups.mean(-1), c // self.num_groups, axis=1)


class LabelEmbedding(nn.Module):
    """A learned vector per class, to add to the time embedding (Dhariwal & Nichol 2021)."""

    num_classes: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, temb: Float[Array, "b e"], label: Int[Array, " b"] | None) -> Array:
        """The vector of each label, 0..num_classes-1, in temb's size. TypeError without labels."""
        shape = self.num_classes, temb.shape[-1]
        table = self.param("embedding", nn.initializers.normal(1.0), shape, jnp.float32)
        if label is None:
            if not self.is_initializing():
                raise TypeError(
                    f"this network has {self.num_classes} classes, but no label is given"
                )
            label = jnp.zeros(temb.shape[:1], jnp.int32)
        return jnp.take(table.astype(self.dtype), jnp.asarray(label), axis=0)


class Dropout(nn.Module):
    """Dropout whose mask for an example depends on that example's key alone."""

    rate: float

    def __call__(self, x: Features, keys: Key[Array, " b"] | None) -> Features:
        """Drop features of x; without keys, x itself."""
        if keys is None or self.rate == 0:
            return x
        name = zlib.crc32("/".join(self.path).encode())

        def mask(key: Key[Array, ""]) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(key, name), 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(mask)(keys), x / (1 - self.rate), 0)


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of t, then two dense layers with SiLU between (Ho et al. 2020)."""

    channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, t: Int[Array, " b"]) -> Float[Array, "b 4*c"]:
        """The embedding of t."""
        h = timestep_embedding(t, self.channels, statistics_dtype(self.dtype))
        h = dense(4 * self.channels, "dense_0", self.dtype)(h)
        return dense(4 * self.channels, "dense_1", self.dtype)(nn.silu(h))


class ResnetBlock(Segment):
    """Two normalised 3x3 convolutions around a shift by the time embedding, plus a shortcut."""

    features: int
    dropout: float
    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Features, temb: Float[Array, "b e"], dropout_keys: Key[Array, " b"] | None = None
    ) -> Features:
        """Features x at the time embedding temb; dropout where there are keys."""
        h = nn.silu(GroupNorm(self.num_groups, self.dtype, name="norm1")(x))
        h = conv3x3(self.features, "conv1", self.dtype)(h)
        h = h + dense(self.features, "temb_proj", self.dtype)(nn.silu(temb))[:, None, None, :]
        h = nn.silu(GroupNorm(self.num_groups, self.dtype, name="norm2")(h))
        h = Dropout(self.dropout, name="dropout")(h, dropout_keys)
        h = conv3x3(self.features, "conv2", self.dtype, scale=ZERO_SCALE)(h)
        if x.shape[-1] != self.features:
            x = dense(self.features, "shortcut", self.dtype)(x)
        return x + h


class SelfAttention(Segment):
    """Single-head self-attention over all pixels, scaled by c^-1/2, with a residual connection."""

    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """x plus what it gathers from all its pixels."""
        b, height, width, c = x.shape
        h = GroupNorm(self.num_groups, self.dtype, name="norm")(x)
        h = h.reshape(b, height * width, c)  # [b, n, c]
        q, k, v = (dense(c, name, self.dtype)(h) for name in ("q", "k", "v"))
        h = attention(q, k, v)
        h = dense(c, "proj_out", self.dtype, scale=ZERO_SCALE)(h)
        return x + h.reshape(b, height, width, c)


def attention(
    q: Float[Array, "b n c"], k: Float[Array, "b m c"], v: Float[Array, "b m c"]
) -> Float[Array, "b n c"]:
    """softmax(q k^T / sqrt(c)) v, the softmax in float32 or better (Vaswani et al. 2017, Eq. 1).

    The softmax's division comes after the product with v, where there is less to divide.
    """
    wide = statistics_dtype(q.dtype)
    scores = jnp.einsum("bnc,bmc->bnm", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("bnm,bmc->bnc", weights.astype(v.dtype), v, preferred_element_type=wide)
    return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)


def upsample_nearest(x: Features) -> Features:
    """Double height and width by repeating pixels."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
