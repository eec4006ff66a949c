"""The U-Net of lucidrains' `denoising_diffusion_pytorch` since 1.9; lucidrains_v1.py has 0.27."""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jax_ddpm.models.architecture import Architecture, ImageShape
from jax_ddpm.models.initializers import normal
from jax_ddpm.models.layers import (
    DropoutKeys,
    Dtype,
    Features,
    Temb,
    conv,
    dense,
    gelu,
    pixel_unshuffle,
    statistics_dtype,
    timestep_embedding,
    upsample_nearest,
)
from jax_ddpm.models.lucidrains_layers import FullAttention, LinearAttention, ResnetBlock
from jax_ddpm.models.network import NetworkModule


@dataclass(frozen=True)
class LucidrainsBase(Architecture):
    """What the U-Nets of all releases since 0.27 have in common; a subclass builds its layers."""

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

    def module(self, out_channels: int, dtype: Any) -> "LucidrainsUNet":
        return LucidrainsUNet(self, out_channels, dtype)

    def make_block(self, features: int, name: str, dtype: Dtype) -> nn.Module:
        """Make a ResNet block: (h, temb, keys) -> h."""
        raise NotImplementedError

    def make_attention(self, stage: int, name: str, dtype: Dtype) -> nn.Module:
        """Make the attention of a stage: h -> the change of h. Stage -1 is the middle."""
        raise NotImplementedError

    def downsample(self, h: Features, features: int, dtype: Dtype) -> Features:
        """Halve height and width."""
        return conv(pixel_unshuffle(h), features, 1, "downsample", dtype)

    def check(self) -> None:
        super().check()
        mults = self.dim_mults
        self.require(bool(mults) and min(mults) >= 1, "dim_mults", "positive whole numbers")
        self.require_positive("dim", "init_dim", "out_dim", "channels")
        if self.fourier:
            size = self.learned_sinusoidal_dim
            even = size >= 2 and size % 2 == 0
            self.require(even, "learned_sinusoidal_dim", "even, and at least 2")
        else:  # the fixed embedding has dim/2 frequencies, and divides by one less
            self.require(self.dim >= 4 and self.dim % 2 == 0, "dim", "even, and at least 4")

    def check_groups(self, groups: int) -> None:
        """Raise UserError unless group norms with `groups` groups are possible."""
        divides = groups >= 1 and self.dim % groups == 0
        self.require(divides, "resnet_block_groups", f"a divisor of dim {self.dim}")
        # The last block expects 2 * dim channels, half of them from the first convolution.
        self.require(self.init_dim in (None, self.dim), "init_dim", f"dim, {self.dim}")

    @property
    def fourier(self) -> bool:
        """Whether the frequencies of the time embedding are parameters."""
        return self.learned_sinusoidal_cond or self.random_fourier_features

    @property
    def period(self) -> float:
        """The longest period of the fixed embedding, as a multiple of the shortest."""
        return 10000.0

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


@dataclass(frozen=True)
class LucidrainsConfig(LucidrainsBase):
    """lucidrains' U-Net since release 1.9, with the package's defaults."""

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
    resnet_block_groups: int | None = None
    """Groups of the group norms in ResNet blocks, as in releases before 2.0; None: RMS norms."""

    def make_block(self, features: int, name: str, dtype: Dtype) -> nn.Module:
        return ResnetBlock(features, self.dropout, dtype, self.resnet_block_groups, name=name)

    def make_attention(self, stage: int, name: str, dtype: Dtype) -> nn.Module:
        sizes, stages = (self.attn_heads, self.attn_dim_head), len(self.dim_mults)
        heads, head_dim = (expand_to_stages(size, stages)[stage] for size in sizes)
        if stage == -1 or self.full_attention[stage]:
            return FullAttention(heads, head_dim, dtype, flash=self.flash_attn, name=name)
        return LinearAttention(heads, head_dim, dtype, name=name)

    def check(self) -> None:
        super().check()
        stages, theta = len(self.dim_mults), self.sinusoidal_pos_emb_theta
        self.require(0 <= self.dropout < 1, "dropout", "in [0, 1)")
        self.require(self.fourier or theta > 0, "sinusoidal_pos_emb_theta", "positive")
        for name in ("attn_dim_head", "attn_heads"):
            each = expand_to_stages(getattr(self, name), stages)
            fits = len(each) == stages and min(each) >= 1
            self.require(fits, name, f"a positive number, or one for each of {stages} resolutions")
        fits = len(self.full_attention) == stages
        self.require(fits, "full_attn", f"one value, or one for each of {stages} resolutions")
        if self.resnet_block_groups is not None:
            self.check_groups(self.resnet_block_groups)

    @property
    def period(self) -> float:
        return self.sinusoidal_pos_emb_theta

    @property
    def full_attention(self) -> tuple[bool, ...]:
        """Whether each resolution has softmax attention; False counts as None, as theirs does."""
        stages = len(self.dim_mults)
        return expand_to_stages(self.full_attn or (*[False] * (stages - 1), True), stages)


def expand_to_stages(value: Any, stages: int) -> tuple[Any, ...]:
    """Repeat `value` for each stage; a tuple stays as it is."""
    return value if isinstance(value, tuple) else (value,) * stages


class TimeEmbedding(nn.Module):
    """Sines and cosines of t, then two dense layers with GELU between."""

    config: LucidrainsBase
    dtype: Dtype

    @nn.compact
    def __call__(self, t: Num[Array, " b"]) -> Temb:
        config, wide = self.config, statistics_dtype(self.dtype)
        if config.fourier:
            h = self._embed_fourier(t.astype(wide)[:, None])
        else:
            h = timestep_embedding(t, config.dim, wide, max_period=config.period)
        h = gelu(dense(h, 4 * config.dim, "dense_0", self.dtype))
        return dense(h, 4 * config.dim, "dense_1", self.dtype)

    def _embed_fourier(self, t: Float[Array, "b 1"]) -> Float[Array, "b d"]:
        """t itself, unscaled, then its sines and cosines."""
        shape = (self.config.learned_sinusoidal_dim // 2,)
        frequencies = self.param("frequencies", normal(1.0), shape, jnp.float32)
        if self.config.random_fourier_features:
            frequencies = jax.lax.stop_gradient(frequencies)
        angles = t * frequencies.astype(t.dtype)[None] * 2 * math.pi  # [b, d/2]
        return jnp.concatenate([t, jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Stage(nn.Module):
    """What the stages share: one resolution of one path. Number -1 is the middle."""

    config: LucidrainsBase
    number: int
    dtype: Dtype

    def block(
        self, h: Features, features: int, name: str, temb: Temb, keys: DropoutKeys
    ) -> Features:
        """Apply the ResNet block called `name`."""
        out: Features = self.config.make_block(features, name, self.dtype)(h, temb, keys)
        return out

    def attend(self, h: Features) -> Features:
        """Add the stage's attention to h."""
        return h + self.config.make_attention(self.number, "attn_1", self.dtype)(h)


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
        return self.config.downsample(h, features, self.dtype), [skip, h]


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

    config: LucidrainsBase

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
        h = config.make_block(config.widths[0], "block_out", self.dtype)(h, temb, dropout_keys)
        channels = x_t.shape[-1] // (2 if config.self_condition else 1)
        learned = 2 * channels if config.learned_variance else self.out_channels
        return conv(h, config.out_dim or learned, 1, "conv_out", self.dtype)
