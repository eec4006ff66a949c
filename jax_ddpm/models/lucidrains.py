"""The U-Net of lucidrains' `denoising_diffusion_pytorch`, version 2."""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jax_ddpm.models.architecture import Architecture, ImageShape
from jax_ddpm.models.layers import (
    Dropout,
    DropoutKeys,
    Dtype,
    Features,
    Segment,
    Temb,
    attention,
    conv,
    dense,
    gelu,
    pixel_unshuffle,
    statistics_dtype,
    timestep_embedding,
    upsample_nearest,
)
from jax_ddpm.models.network import NetworkModule

Heads = Float[Array, "b n h d"]
LongerHeads = Float[Array, "b m+n h d"]  # with the m learned ones in front

NUM_MEM_KV = 4  # keys and values that every attention learns in addition to the pixels


@dataclass(frozen=True)
class LucidrainsConfig(Architecture):
    """lucidrains' U-Net, with the package's defaults."""

    dim: int = 64
    """The unit of width; the time embedding has 4 * dim channels."""
    init_dim: int | None = None
    """Channels of the first convolution; None: dim."""
    out_dim: int | None = None
    """Channels of the output; None: the data's, or twice as many with learned_variance."""
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    """Channels after each resolution, as multiples of dim; each resolution is half of the one
    before."""
    channels: int | None = None
    """Channels of the images; None: the data's."""
    self_condition: bool = False
    """Also take a previous estimate of the clean image; zeros where there is none."""
    learned_variance: bool = False
    """Twice as many output channels: the second half is the variance."""
    learned_sinusoidal_cond: bool = False
    """Embed t with learned frequencies."""
    random_fourier_features: bool = False
    """Embed t with random frequencies, which are not trained."""
    learned_sinusoidal_dim: int = 16
    """Number of sines and cosines of learned or random frequencies."""
    sinusoidal_pos_emb_theta: float = 10000.0
    """The longest period of the fixed embedding, as a multiple of the shortest."""
    dropout: float = 0.0
    """Probability that a feature is dropped in training, in the first half of each block."""
    attn_dim_head: int | tuple[int, ...] = 32
    """Channels of an attention head: one number, or one per resolution."""
    attn_heads: int | tuple[int, ...] = 4
    """Attention heads: one number, or one per resolution."""
    full_attn: bool | tuple[bool, ...] | None = None
    """Softmax attention instead of linear attention: everywhere, or per resolution; None: at the
    lowest resolution."""
    flash_attn: bool = False
    """Compute softmax attention by a fused kernel where there is one; the result is the same."""

    def module(self, out_channels: int, dtype: Any) -> "LucidrainsUNet":
        return LucidrainsUNet(self, out_channels, dtype)

    def check(self) -> None:
        super().check()
        mults, stages = self.dim_mults, len(self.dim_mults)
        self.require(bool(mults) and min(mults) >= 1, "dim_mults", "positive whole numbers")
        self._check_time()
        self.require(0 <= self.dropout < 1, "dropout", "in [0, 1)")
        self.require_positive("dim", "init_dim", "out_dim", "channels")
        for name in ("attn_dim_head", "attn_heads"):
            each = expand_to_stages(getattr(self, name), stages)
            fits = len(each) == stages and min(each) >= 1
            self.require(fits, name, f"a positive number, or one for each of {stages} resolutions")
        fits = len(self.full_attention) == stages
        self.require(fits, "full_attn", f"one value, or one for each of {stages} resolutions")

    def _check_time(self) -> None:
        if self.fourier:
            size = self.learned_sinusoidal_dim
            even = size >= 2 and size % 2 == 0
            self.require(even, "learned_sinusoidal_dim", "even, and at least 2")
        else:  # the fixed embedding has dim/2 frequencies, and divides by one less
            self.require(self.dim >= 4 and self.dim % 2 == 0, "dim", "even, and at least 4")
            theta = self.sinusoidal_pos_emb_theta
            self.require(theta > 0, "sinusoidal_pos_emb_theta", "positive")

    @property
    def fourier(self) -> bool:
        """Whether the frequencies of the time embedding are parameters."""
        return self.learned_sinusoidal_cond or self.random_fourier_features

    @property
    def full_attention(self) -> tuple[bool, ...]:
        """Whether each resolution has softmax attention; False counts as None, as theirs does."""
        stages = len(self.dim_mults)
        return expand_to_stages(self.full_attn or (*[False] * (stages - 1), True), stages)

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels before the first resolution, and those after each."""
        return (self.init_dim or self.dim, *(self.dim * mult for mult in self.dim_mults))

    @property
    def side_multiple(self) -> int:
        return int(2 ** (len(self.dim_mults) - 1))

    @property
    def image_channels(self) -> int | None:
        return self.channels

    @property
    def example_shape(self) -> ImageShape:
        return 4 * self.side_multiple, 4 * self.side_multiple, self.channels or 3

    @property
    def self_conditioned(self) -> bool:
        return self.self_condition


def expand_to_stages(value: Any, stages: int) -> tuple[Any, ...]:
    """Repeat `value` for each stage; a tuple stays as it is."""
    return value if isinstance(value, tuple) else (value,) * stages


class RMSNorm(nn.Module):
    """Scale each pixel's features to length sqrt(c), then each channel by a learned factor.

    Root mean square normalisation (Zhang & Sennrich 2019), but divided by max(length, 1e-12), not
    by sqrt(mean + eps). Lengths are summed in float32 or better.
    """

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features) -> Features:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        wide = x.astype(statistics_dtype(self.dtype))
        square = jnp.maximum((wide**2).sum(-1, keepdims=True), 1e-24)
        factor = (scale.astype(wide.dtype) * x.shape[-1] ** 0.5)[None, None, None]
        return (wide * jax.lax.rsqrt(square) * factor).astype(self.dtype)


class TimeEmbedding(nn.Module):
    """Sines and cosines of t, then two dense layers with GELU between."""

    config: LucidrainsConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, t: Num[Array, " b"]) -> Temb:
        config, wide = self.config, statistics_dtype(self.dtype)
        if config.fourier:
            h = self._embed_fourier(t.astype(wide)[:, None])
        else:
            period = config.sinusoidal_pos_emb_theta
            h = timestep_embedding(t, config.dim, wide, max_period=period)
        h = gelu(dense(h, 4 * config.dim, "dense_0", self.dtype))
        return dense(h, 4 * config.dim, "dense_1", self.dtype)

    def _embed_fourier(self, t: Float[Array, "b 1"]) -> Float[Array, "b d"]:
        """t itself, unscaled, then its sines and cosines."""
        shape = (self.config.learned_sinusoidal_dim // 2,)
        frequencies = self.param("frequencies", nn.initializers.normal(1.0), shape, jnp.float32)
        if self.config.random_fourier_features:
            frequencies = jax.lax.stop_gradient(frequencies)
        angles = t * frequencies.astype(t.dtype)[None] * 2 * math.pi  # [b, d/2]
        return jnp.concatenate([t, jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ResnetBlock(Segment):
    """Two convolutions, the first scaled and shifted by the time embedding, plus a shortcut."""

    features: int
    dropout: float
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features, temb: Temb, keys: DropoutKeys) -> Features:
        modulation = dense(nn.silu(temb), 2 * self.features, "temb_proj", self.dtype)
        scale, shift = jnp.split(modulation[:, None, None, :], 2, axis=-1)
        h = RMSNorm(self.dtype, name="norm1")(conv(x, self.features, 3, "conv1", self.dtype))
        h = nn.silu(h * (scale + 1) + shift)
        h = Dropout(self.dropout, name="dropout")(h, keys)
        h = RMSNorm(self.dtype, name="norm2")(conv(h, self.features, 3, "conv2", self.dtype))
        if x.shape[-1] != self.features:
            x = conv(x, self.features, 1, "shortcut", self.dtype)
        return nn.silu(h) + x


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
        mem_kv = self.param("mem_kv", nn.initializers.normal(1.0), shape, jnp.float32)
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
        mem_kv = self.param("mem_kv", nn.initializers.normal(1.0), shape, jnp.float32)
        q, k, v = self.project(x, mem_kv.transpose(0, 2, 1, 3))
        if self.flash and q.dtype != jnp.float64:  # JAX's has no double precision softmax
            out = jax.nn.dot_product_attention(q, k, v)
        else:
            out = jax.vmap(attention, in_axes=2, out_axes=2)(q, k, v)  # over the heads
        return conv(out.reshape(*x.shape[:3], -1), x.shape[-1], 1, "proj_out", self.dtype)


class Stage(nn.Module):
    """What the stages share: one resolution of one path. Number -1 is the middle."""

    config: LucidrainsConfig
    number: int
    dtype: Dtype

    def block(
        self, h: Features, features: int, name: str, temb: Temb, keys: DropoutKeys
    ) -> Features:
        """Apply the ResNet block called `name`."""
        return ResnetBlock(features, self.config.dropout, self.dtype, name=name)(h, temb, keys)

    def attend(self, h: Features) -> Features:
        """Add the stage's attention to h."""
        config, stages, dtype = self.config, len(self.config.dim_mults), self.dtype
        sizes = (config.attn_heads, config.attn_dim_head)
        heads, head_dim = (expand_to_stages(size, stages)[self.number] for size in sizes)
        if self.number == -1 or config.full_attention[self.number]:
            flash = config.flash_attn
            return FullAttention(heads, head_dim, dtype, flash=flash, name="attn_1")(h) + h
        return LinearAttention(heads, head_dim, dtype, name="attn_1")(h) + h


class DownStage(Stage):
    """One resolution of the contracting path."""

    @nn.compact
    def __call__(
        self, h: Features, temb: Temb, keys: DropoutKeys
    ) -> tuple[Features, list[Features]]:
        """The input of the next stage, and the two skip connections."""
        skip = self.block(h, h.shape[-1], "block_0", temb, keys)
        h = self.attend(self.block(skip, h.shape[-1], "block_1", temb, keys))
        features = self.config.widths[self.number + 1]
        if self.number == len(self.config.dim_mults) - 1:
            return conv(h, features, 3, "conv", self.dtype), [skip, h]
        return conv(pixel_unshuffle(h), features, 1, "downsample", self.dtype), [skip, h]


class Middle(Stage):
    """Block, softmax attention, block at the lowest resolution."""

    @nn.compact
    def __call__(self, h: Features, temb: Temb, keys: DropoutKeys) -> Features:
        h = self.attend(self.block(h, h.shape[-1], "block_1", temb, keys))
        return self.block(h, h.shape[-1], "block_2", temb, keys)


class UpStage(Stage):
    """One resolution of the expanding path; each block also sees a skip connection."""

    @nn.compact
    def __call__(
        self, h: Features, skips: list[Features], temb: Temb, keys: DropoutKeys
    ) -> Features:
        """Apply both blocks, with the newest skip connection first."""
        narrow, features = self.config.widths[self.number : self.number + 2]
        for i, skip in enumerate(skips):
            h = jnp.concatenate([h, skip], axis=-1)
            h = self.block(h, features, f"block_{i}", temb, keys)
        h = self.attend(h)
        if self.number == 0:
            return conv(h, narrow, 3, "conv", self.dtype)
        return conv(upsample_nearest(h), narrow, 3, "upsample", self.dtype)


class LucidrainsUNet(NetworkModule):
    """lucidrains' network; t may be fractional."""

    config: LucidrainsConfig

    def forward(
        self, x_t: Features, t: Num[Array, " b"], label: None, dropout_keys: DropoutKeys
    ) -> Features:
        config, stages = self.config, range(len(self.config.dim_mults))
        h = conv(x_t, config.widths[0], 7, "conv_in", self.dtype)
        temb = TimeEmbedding(config, self.dtype, name="temb")(t)
        first, skips = h, []
        for i in stages:
            h, outputs = DownStage(config, i, self.dtype, name=f"down_{i}")(h, temb, dropout_keys)
            skips += outputs
        h = Middle(config, -1, self.dtype, name="mid")(h, temb, dropout_keys)
        for i in reversed(stages):
            newest = [skips.pop(), skips.pop()]
            h = UpStage(config, i, self.dtype, name=f"up_{i}")(h, newest, temb, dropout_keys)
        h = jnp.concatenate([h, first], axis=-1)
        args = (config.widths[0], config.dropout, self.dtype)
        h = ResnetBlock(*args, name="block_out")(h, temb, dropout_keys)
        channels = x_t.shape[-1] // (2 if config.self_condition else 1)
        learned = 2 * channels if config.learned_variance else self.out_channels
        return conv(h, config.out_dim or learned, 1, "conv_out", self.dtype)
