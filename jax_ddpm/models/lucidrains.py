"""The U-Net of lucidrains' `denoising_diffusion_pytorch`, version 2."""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Num

from jax_ddpm.models.base import Architecture, ImageShape, require
from jax_ddpm.models.layers import (
    Dropout,
    Features,
    Segment,
    attention,
    statistics_dtype,
    torch_uniform,
    upsample_nearest,
)

Temb = Float[Array, "b e"]
DropoutKeys = Key[Array, " b"] | None
Heads = Float[Array, "b n h d"]

# Keys and values that every attention learns, beside those of the image.
NUM_MEMORIES = 4


@dataclass(frozen=True)
class LucidrainsConfig(Architecture):
    """lucidrains' U-Net; the defaults are those of the package, and of its examples."""

    dim: int = 64
    """The unit of width; the time embedding has four of it."""
    init_dim: int | None = None
    """Channels of the first convolution; None: dim."""
    out_dim: int | None = None
    """Channels of the output; None: those of the data, twice as many with learned_variance."""
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    """Channels after each level, as multiples of dim; each but the last halves the resolution."""
    channels: int | None = None
    """Channels of the images; None: those of the data."""
    self_condition: bool = False
    """Also see a previous estimate of the clean image; zeros where there is none."""
    learned_variance: bool = False
    """Twice as many output channels: the second half is the variance."""
    learned_sinusoidal_cond: bool = False
    """Embed t with learned frequencies."""
    random_fourier_features: bool = False
    """Embed t with random frequencies, which are not trained."""
    learned_sinusoidal_dim: int = 16
    """Sines and cosines of such an embedding."""
    sinusoidal_pos_emb_theta: float = 10000.0
    """The longest period of the fixed embedding, as a multiple of the shortest."""
    dropout: float = 0.0
    """Probability that a feature is dropped in training, in the first half of each block."""
    attn_dim_head: int | tuple[int, ...] = 32
    """Channels of an attention head; one number, or one for each level."""
    attn_heads: int | tuple[int, ...] = 4
    """Attention heads; one number, or one for each level."""
    full_attn: bool | tuple[bool, ...] | None = None
    """Softmax attention instead of linear: everywhere, or level by level; None: the last level."""
    flash_attn: bool = False
    """Softmax attention by a fused kernel, where there is one; the same numbers."""

    def module(self, out_channels: int, dtype: Any) -> "LucidrainsUNet":
        """The Linen module; see the base class."""
        return LucidrainsUNet(config=self, out_channels=out_channels, dtype=dtype)

    def check(self) -> None:
        """Raise ValueError for the first setting that cannot work."""
        mults, size = self.dim_mults, self.learned_sinusoidal_dim
        require(bool(mults) and min(mults) >= 1, "dim-mults", mults, "positive whole numbers")
        if self.fourier:
            even, expected = size >= 2 and size % 2 == 0, "even, and at least 2"
            require(even, "learned-sinusoidal-dim", size, expected)
        else:  # the fixed embedding has dim/2 frequencies, and divides by one less
            require(self.dim >= 4 and self.dim % 2 == 0, "dim", self.dim, "even, and at least 4")
            theta = self.sinusoidal_pos_emb_theta
            require(theta > 0, "sinusoidal-pos-emb-theta", theta, "positive")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        for name in ("dim", "init-dim", "out-dim", "channels"):
            value = getattr(self, name.replace("-", "_"))
            require(value is None or value >= 1, name, value, "at least 1")
        for name in ("attn-dim-head", "attn-heads"):
            value = getattr(self, name.replace("-", "_"))
            each = per_level(value, len(mults))
            expected = f"a positive whole number, or one for each of {len(mults)} levels"
            require(len(each) == len(mults) and min(each) >= 1, name, value, expected)
        expected = f"one answer, or one for each of {len(mults)} levels"
        require(len(self.full_attention) == len(mults), "full-attn", self.full_attn, expected)

    @property
    def fourier(self) -> bool:
        """Whether the frequencies of the time embedding are parameters."""
        return self.learned_sinusoidal_cond or self.random_fourier_features

    @property
    def full_attention(self) -> tuple[bool, ...]:
        """Whether each level has softmax attention; False says as little as None, as theirs."""
        levels = len(self.dim_mults)
        return per_level(self.full_attn or (*[False] * (levels - 1), True), levels)

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels before the first level, and those after each level."""
        return (self.init_dim or self.dim, *(self.dim * mult for mult in self.dim_mults))

    @property
    def multiple(self) -> int:
        """What height and width of the images must be multiples of."""
        return int(2 ** (len(self.dim_mults) - 1))

    @property
    def example_shape(self) -> ImageShape:
        """An image of the network."""
        return 4 * self.multiple, 4 * self.multiple, self.channels or 3


def per_level(value: Any, levels: int) -> tuple[Any, ...]:
    """A tuple as it is; one value for every level."""
    return value if isinstance(value, tuple) else (value,) * levels


def conv(
    x: Features, features: int, size: int, name: str, dtype: Any, *, use_bias: bool = True
) -> Features:
    """A convolution of x by a kernel of size x size that keeps height and width."""
    init, pad = torch_uniform(x.shape[-1] * size**2), (size // 2, size // 2)
    layer = nn.Conv(
        features, (size, size), padding=(pad, pad), use_bias=use_bias,
        kernel_init=init, bias_init=init, dtype=dtype, name=name,
    )  # fmt: skip
    return layer(x)


def dense(x: Float[Array, "b c"], features: int, name: str, dtype: Any) -> Float[Array, "b d"]:
    """A linear map of x."""
    init = torch_uniform(x.shape[-1])
    return nn.Dense(features, kernel_init=init, bias_init=init, dtype=dtype, name=name)(x)


def pixel_unshuffle(x: Features) -> Float[Array, "b h/2 w/2 4*c"]:
    """Halve height and width; the four pixels become the fastest of the channels."""
    b, height, width, c = x.shape
    x = x.reshape(b, height // 2, 2, width // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, height // 2, width // 2, 4 * c)


class RMSNorm(nn.Module):
    """Scales each pixel's features to length sqrt(c), then each channel by a learned factor.

    Root mean square normalisation (Zhang & Sennrich 2019), but it divides by
    max(length, 1e-12), not by sqrt(mean + eps). Lengths are summed in float32 or better.
    """

    dtype: Any

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """Normalise x over its channels."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        wide = x.astype(statistics_dtype(self.dtype))
        square = jnp.maximum((wide**2).sum(-1, keepdims=True), 1e-24)
        factor = (scale.astype(wide.dtype) * x.shape[-1] ** 0.5)[None, None, None]
        return (wide * jax.lax.rsqrt(square) * factor).astype(self.dtype)


class TimeEmbedding(nn.Module):
    """Sines and cosines of t, then two dense layers with GELU between."""

    config: LucidrainsConfig
    dtype: Any

    @nn.compact
    def __call__(self, t: Num[Array, " b"]) -> Temb:
        """The embedding of t, whole or not."""
        t = t.astype(statistics_dtype(self.dtype))[:, None]
        h = self._fourier(t) if self.config.fourier else self._sinusoidal(t)
        h = nn.gelu(dense(h, 4 * self.config.dim, "dense_0", self.dtype), approximate=False)
        return dense(h, 4 * self.config.dim, "dense_1", self.dtype)

    def _sinusoidal(self, t: Float[Array, "b 1"]) -> Float[Array, "b d"]:
        """As Vaswani et al. 2017, with the exponent's denominator of Ho et al. 2020."""
        half = self.config.dim // 2
        step = math.log(self.config.sinusoidal_pos_emb_theta) / (half - 1)
        angles = t * jnp.exp(-step * jnp.arange(half, dtype=t.dtype))[None]  # [b, d/2]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def _fourier(self, t: Float[Array, "b 1"]) -> Float[Array, "b 1+d"]:
        """t itself as well, unscaled."""
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
    dtype: Any

    @nn.compact
    def __call__(self, x: Features, temb: Temb, keys: DropoutKeys) -> Features:
        """Features x at the time embedding temb; dropout where there are keys."""
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
    """What both kinds of attention share: norm, projection, memories."""

    heads: int
    head_dim: int
    dtype: Any

    def project(self, x: Features, memories: Float[Array, "2 m h d"]) -> tuple[Heads, Heads, Heads]:
        """Queries of the pixels of x; keys and values of the memories, then of the pixels."""
        x = RMSNorm(self.dtype, name="norm")(x)
        qkv = conv(x, 3 * self.heads * self.head_dim, 1, "qkv", self.dtype, use_bias=False)
        qkv = qkv.reshape(x.shape[0], -1, 3, self.heads, self.head_dim)  # [b, n, 3, h, d]
        many = jnp.repeat(memories.astype(qkv.dtype)[:, None], x.shape[0], axis=1)
        k, v = (jnp.concatenate([many[i], qkv[:, :, i + 1]], axis=1) for i in range(2))
        return qkv[:, :, 0], k, v


class LinearAttention(Attention):
    """Attention whose cost is linear in the pixels (Shen et al. 2018), normalised at the end."""

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """What each pixel of x gathers."""
        shape = (2, self.heads, self.head_dim, NUM_MEMORIES)
        memories = self.param("mem_kv", nn.initializers.normal(1.0), shape, jnp.float32)
        q, k, v = self.project(x, memories.transpose(0, 3, 1, 2))
        wide = statistics_dtype(self.dtype)
        q = jax.nn.softmax(q.astype(wide), axis=-1).astype(self.dtype)  # over the channels
        k = jax.nn.softmax(k.astype(wide), axis=1).astype(self.dtype)  # over memories and pixels
        context = jnp.einsum("bnhd,bnhe->bhde", k, v)
        out = jnp.einsum("bhde,bnhd->bnhe", context, q * self.head_dim**-0.5)
        out = conv(out.reshape(*x.shape[:3], -1), x.shape[-1], 1, "proj", self.dtype)
        return RMSNorm(self.dtype, name="norm_out")(out)


class FullAttention(Attention):
    """Softmax attention (Vaswani et al. 2017), by a fused kernel with `flash`."""

    flash: bool

    @nn.compact
    def __call__(self, x: Features) -> Features:
        """What each pixel of x gathers."""
        shape = (2, self.heads, NUM_MEMORIES, self.head_dim)
        memories = self.param("mem_kv", nn.initializers.normal(1.0), shape, jnp.float32)
        q, k, v = self.project(x, memories.transpose(0, 2, 1, 3))
        if self.flash and q.dtype != jnp.float64:  # JAX's has no double precision softmax
            out = jax.nn.dot_product_attention(q, k, v)
        else:
            out = jax.vmap(attention, in_axes=2, out_axes=2)(q, k, v)  # over the heads
        return conv(out.reshape(*x.shape[:3], -1), x.shape[-1], 1, "proj_out", self.dtype)


class Level(nn.Module):
    """One resolution of one of the two paths; number -1 is the middle."""

    config: LucidrainsConfig
    number: int
    dtype: Any

    def block(self, h: Features, features: int, name: str, temb: Temb, keys: DropoutKeys) -> Any:
        """A ResNet block."""
        return ResnetBlock(features, self.config.dropout, self.dtype, name=name)(h, temb, keys)

    def attend(self, h: Features) -> Features:
        """h plus its attention."""
        config, levels, dtype = self.config, len(self.config.dim_mults), self.dtype
        sizes = (config.attn_heads, config.attn_dim_head)
        heads, head_dim = (per_level(size, levels)[self.number] for size in sizes)
        if self.number == -1 or config.full_attention[self.number]:
            flash = config.flash_attn
            return FullAttention(heads, head_dim, dtype, flash=flash, name="attn_1")(h) + h
        return LinearAttention(heads, head_dim, dtype, name="attn_1")(h) + h


class DownLevel(Level):
    """One resolution of the contracting path."""

    @nn.compact
    def __call__(
        self, h: Features, temb: Temb, keys: DropoutKeys
    ) -> tuple[Features, list[Features]]:
        """h for the next level, and the two outputs that the other path sees again."""
        skip = self.block(h, h.shape[-1], "block_0", temb, keys)
        h = self.attend(self.block(skip, h.shape[-1], "block_1", temb, keys))
        features = self.config.widths[self.number + 1]
        if self.number == len(self.config.dim_mults) - 1:
            return conv(h, features, 3, "conv", self.dtype), [skip, h]
        return conv(pixel_unshuffle(h), features, 1, "downsample", self.dtype), [skip, h]


class Middle(Level):
    """Block, softmax attention, block at the lowest resolution."""

    @nn.compact
    def __call__(self, h: Features, temb: Temb, keys: DropoutKeys) -> Features:
        """h, transformed."""
        h = self.attend(self.block(h, h.shape[-1], "block_1", temb, keys))
        return self.block(h, h.shape[-1], "block_2", temb, keys)


class UpLevel(Level):
    """One resolution of the expanding path; each block also sees one output of the other."""

    @nn.compact
    def __call__(
        self, h: Features, skips: list[Features], temb: Temb, keys: DropoutKeys
    ) -> Features:
        """h for the next level; of the two skip connections the newest comes first."""
        narrow, features = self.config.widths[self.number : self.number + 2]
        for i, skip in enumerate(skips):
            h = jnp.concatenate([h, skip], axis=-1)
            h = self.block(h, features, f"block_{i}", temb, keys)
        h = self.attend(h)
        if self.number == 0:
            return conv(h, narrow, 3, "conv", self.dtype)
        return conv(upsample_nearest(h), narrow, 3, "upsample", self.dtype)


class LucidrainsUNet(nn.Module):
    """lucidrains' network; height and width must be multiples of 2^(number of levels - 1)."""

    config: LucidrainsConfig
    out_channels: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_t: Features,
        t: Num[Array, " b"],
        *,
        x_self_cond: Features | None = None,
        train: bool = False,
        dropout_keys: DropoutKeys = None,
    ) -> Features:
        """The raw output [b, h, w, o], float32, for images x_t at timesteps t, whole or not.

        With `self_condition`, x_self_cond [b, h, w, c] is an earlier estimate of x_0, or zeros.
        Dropout is on where `train` is set and each example has a key.
        """
        config, keys = self.config, dropout_keys if train else None
        levels = range(len(config.dim_mults))
        h = conv(self._input(x_t, x_self_cond), config.widths[0], 7, "conv_in", self.dtype)
        temb = TimeEmbedding(config, self.dtype, name="temb")(t)
        first, skips = h, []
        for i in levels:
            h, outputs = DownLevel(config, i, self.dtype, name=f"down_{i}")(h, temb, keys)
            skips += outputs
        h = Middle(config, -1, self.dtype, name="mid")(h, temb, keys)
        for i in reversed(levels):
            newest = [skips.pop(), skips.pop()]
            h = UpLevel(config, i, self.dtype, name=f"up_{i}")(h, newest, temb, keys)
        h = jnp.concatenate([h, first], axis=-1)
        args = (config.widths[0], config.dropout, self.dtype)
        h = ResnetBlock(*args, name="block_out")(h, temb, keys)
        h = conv(h, self._out_dim(x_t.shape[-1]), 1, "conv_out", self.dtype)
        return h.astype(statistics_dtype(self.dtype))

    def _input(self, x_t: Features, x_self_cond: Features | None) -> Features:
        multiple, (height, width) = self.config.multiple, x_t.shape[1:3]
        if height % multiple or width % multiple:
            expected = f"both sides must be multiples of {multiple}"
            raise ValueError(f"images are {height}x{width}, but {expected}")
        if not self.config.self_condition:
            if x_self_cond is not None:
                raise TypeError("this network has no self-conditioning: x_self_cond is not for it")
            return x_t.astype(self.dtype)
        estimate = jnp.zeros_like(x_t) if x_self_cond is None else x_self_cond
        return jnp.concatenate([estimate, x_t], axis=-1).astype(self.dtype)

    def _out_dim(self, channels: int) -> int:
        if self.config.out_dim is not None:
            return self.config.out_dim
        return 2 * channels if self.config.learned_variance else self.out_channels
