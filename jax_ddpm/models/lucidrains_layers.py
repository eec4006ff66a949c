"""The layers of lucidrains' U-Nets: norm, ResNet block and two kinds of attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_ddpm.models.initializers import ONES, normal
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
    statistics_dtype,
)

Heads = Float[Array, "b n h d"]
LongerHeads = Float[Array, "b m+n h d"]  # with the m learned ones in front

EPS = 1e-5  # of group norms: PyTorch's default
NUM_MEM_KV = 4  # keys and values that every attention learns in addition to the pixels


class RMSNorm(nn.Module):
    """Scale each pixel's features to length sqrt(c), then each channel by a learned factor.

    Root mean square normalisation (Zhang & Sennrich 2019), but divided by max(length, 1e-12), not
    by sqrt(mean + eps). Lengths are summed in float32 or better.
    """

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features) -> Features:
        scale = self.param("scale", ONES, (x.shape[-1],), jnp.float32)
        wide = x.astype(statistics_dtype(self.dtype))
        square = jnp.maximum((wide**2).sum(-1, keepdims=True), 1e-24)
        factor = (scale.astype(wide.dtype) * x.shape[-1] ** 0.5)[None, None, None]
        return (wide * jax.lax.rsqrt(square) * factor).astype(self.dtype)


class ResnetBlock(Segment):
    """Two convolutions, the first scaled and shifted by the time embedding, plus a shortcut."""

    features: int
    dropout: float
    dtype: Dtype
    num_groups: int | None = None  # of group norms; None: RMS norms

    @nn.compact
    def __call__(self, x: Features, temb: Temb, keys: DropoutKeys) -> Features:
        modulation = dense(nn.silu(temb), 2 * self.features, "temb_proj", self.dtype)
        scale, shift = jnp.split(modulation[:, None, None, :], 2, axis=-1)
        h = self.normalise(conv(x, self.features, 3, "conv1", self.dtype), "norm1")
        h = nn.silu(h * (scale + 1) + shift)
        h = Dropout(self.dropout, name="dropout")(h, keys)
        h = self.normalise(conv(h, self.features, 3, "conv2", self.dtype), "norm2")
        if x.shape[-1] != self.features:
            x = conv(x, self.features, 1, "shortcut", self.dtype)
        return nn.silu(h) + x

    def normalise(self, h: Features, name: str) -> Features:
        """Apply the norm called `name`."""
        if self.num_groups is None:
            return RMSNorm(self.dtype, name=name)(h)
        return GroupNorm(self.num_groups, self.dtype, EPS, name=name)(h)


class Attention(Segment):
    """What both kinds of attention share: norm, projection, learned keys and values."""

    heads: int
    head_dim: int
    dtype: Dtype

    def project(
        self, x: Features, mem_kv: Float[Array, "2 m h d"]
    ) -> tuple[Heads, LongerHeads, LongerHeads]:
        """Queries of the pixels of x; keys and values, first the learned ones, then the pixels'."""
        x = RMSNorm(self.dtype, name="norm")(x)
        qkv = conv(x, 3 * self.heads * self.head_dim, 1, "qkv", self.dtype, use_bias=False)
        qkv = qkv.reshape(x.shape[0], -1, 3, self.heads, self.head_dim)  # [b, n, 3, h, d]
        learned = jnp.repeat(mem_kv.astype(qkv.dtype)[:, None], x.shape[0], axis=1)
        k, v = (jnp.concatenate([learned[i], qkv[:, :, i + 1]], axis=1) for i in range(2))
        return qkv[:, :, 0], k, v


class LinearAttention(Attention):
    """Attention whose cost is linear in the pixels (Shen et al. 2018), normalised at the end."""

    @nn.compact
    def __call__(self, x: Features) -> Features:
        shape = (2, self.heads, self.head_dim, NUM_MEM_KV)
        mem_kv = self.param("mem_kv", normal(1.0), shape, jnp.float32)
        q, k, v = self.project(x, mem_kv.transpose(0, 3, 1, 2))
        wide = statistics_dtype(self.dtype)
        q = jax.nn.softmax(q.astype(wide), axis=-1).astype(self.dtype)  # over the channels
        k = jax.nn.softmax(k.astype(wide), axis=1).astype(self.dtype)  # over all keys
        context = jnp.einsum("bnhd,bnhe->bhde", k, v)
        out = jnp.einsum("bhde,bnhd->bnhe", context, q * self.head_dim**-0.5)
        out = conv(out.reshape(*x.shape[:3], -1), x.shape[-1], 1, "proj", self.dtype)
        return RMSNorm(self.dtype, name="norm_out")(out)


class FullAttention(Attention):
    """Softmax attention (Vaswani et al. 2017), by a fused kernel with `flash`."""

    flash: bool

    @nn.compact
    def __call__(self, x: Features) -> Features:
        shape = (2, self.heads, NUM_MEM_KV, self.head_dim)
        mem_kv = self.param("mem_kv", normal(1.0), shape, jnp.float32)
        q, k, v = self.project(x, mem_kv.transpose(0, 2, 1, 3))
        if self.flash and q.dtype != jnp.float64:  # JAX's has no double precision softmax
            out = jax.nn.dot_product_attention(q, k, v)
        else:
            out = jax.vmap(attention, in_axes=2, out_axes=2)(q, k, v)  # over the heads
        return conv(out.reshape(*x.shape[:3], -1), x.shape[-1], 1, "proj_out", self.dtype)
