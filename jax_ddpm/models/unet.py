"""The U-Net of Ho et al. 2020 (appendix B; after PixelCNN++ and Wide ResNet)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Int, Num

from jax_ddpm.models.architecture import MAX_BLOCKS, Architecture, ImageShape
from jax_ddpm.models.initializers import ZERO_SCALE, fan_average
from jax_ddpm.models.layers import (
    MLP,
    Dropout,
    DropoutKeys,
    Dtype,
    Features,
    GroupNorm,
    LabelEmbedding,
    Segment,
    Temb,
    attention,
    conv,
    dense,
    downsample_mean,
    statistics_dtype,
    timestep_embedding,
    upsample_nearest,
)
from jax_ddpm.models.network import NetworkModule

EPS = 1e-6  # of the norms: TensorFlow's default
INIT, ALMOST_ZERO = fan_average(), fan_average(ZERO_SCALE)


@dataclass(frozen=True)
class UNetConfig(Architecture):
    """The U-Net of Ho et al. 2020; the defaults are its CIFAR-10 size."""

    channels: int = 128
    """Channels at full resolution."""
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    """Channels at each resolution, as multiples; each resolution is half of the one before."""
    num_res_blocks: int = 2
    """ResNet blocks per resolution."""
    attn_levels: tuple[int, ...] = (1,)
    """Resolutions with self-attention; 0 is the full one, 1 half of it, and so on."""
    dropout: float = 0.1
    """Probability that a feature is dropped in training."""
    num_groups: int = 32
    """Groups of each group normalisation."""
    in_channels: int | None = None
    """Channels of the images; None: the data's."""
    out_channels: int | None = None
    """Channels of the output; None: the data's, or twice as many with a learned variance."""
    num_classes: int | None = None
    """Number of classes that a label can have; None: the network takes no label."""
    resamp_with_conv: bool = True
    """Change the resolution with a convolution; otherwise only average or repeat pixels."""

    def module(self, out_channels: int, dtype: Any) -> "UNet":
        return UNet(self, self.out_channels or out_channels, dtype)

    def check(self) -> None:
        super().check()
        self.require(self.channels >= 4, "channels", "at least 4")
        mult = self.channel_mult
        self.require(bool(mult) and min(mult) >= 1, "channel_mult", "positive whole numbers")
        self.require(self.num_res_blocks >= 1, "num_res_blocks", "at least 1")
        self.require(self.num_res_blocks <= MAX_BLOCKS, "num_res_blocks", f"at most {MAX_BLOCKS}")
        self.require(0 <= self.dropout < 1, "dropout", "in [0, 1)")
        for level in self.attn_levels:
            known = level in range(len(mult))
            self.require(known, "attn_levels", f"between 0 and {len(mult) - 1}", level)
        divides = self.num_groups >= 1 and self.channels % self.num_groups == 0
        self.require(divides, "num_groups", f"a divisor of {self.channels} channels")
        self.require_positive("num_classes", "in_channels", "out_channels")

    @property
    def image_channels(self) -> int | None:
        return self.in_channels

    @property
    def example_shape(self) -> ImageShape:
        return 32, 32, self.in_channels or 3

    @property
    def num_labels(self) -> int | None:
        return self.num_classes


class ResnetBlock(Segment):
    """Two normalised 3x3 convolutions around a shift by the time embedding, plus a shortcut."""

    features: int
    dropout: float
    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Features, temb: Temb, dropout_keys: DropoutKeys = None) -> Features:
        h = nn.silu(GroupNorm(self.num_groups, self.dtype, EPS, name="norm1")(x))
        h = conv(h, self.features, 3, "conv1", self.dtype, init=INIT)
        shift = dense(nn.silu(temb), self.features, "temb_proj", self.dtype, init=INIT)
        h = h + shift[:, None, None, :]
        h = nn.silu(GroupNorm(self.num_groups, self.dtype, EPS, name="norm2")(h))
        h = Dropout(self.dropout, name="dropout")(h, dropout_keys)
        h = conv(h, self.features, 3, "conv2", self.dtype, init=ALMOST_ZERO)
        if x.shape[-1] != self.features:
            x = dense(x, self.features, "shortcut", self.dtype, init=INIT)
        return x + h


class SelfAttention(Segment):
    """Single-head self-attention over all pixels, scaled by c^-1/2, with a residual connection."""

    num_groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Features) -> Features:
        b, height, width, c = x.shape
        h = GroupNorm(self.num_groups, self.dtype, EPS, name="norm")(x)
        h = h.reshape(b, height * width, c)  # [b, n, c]
        q, k, v = (dense(h, c, name, self.dtype, init=INIT) for name in ("q", "k", "v"))
        h = dense(attention(q, k, v), c, "proj_out", self.dtype, init=ALMOST_ZERO)
        return x + h.reshape(b, height, width, c)


class Stage(nn.Module):
    """What both paths share: ResNet blocks at one resolution, each perhaps with attention."""

    features: int
    attention: bool
    dropout: float
    num_groups: int
    dtype: Dtype

    def block(self, i: int, h: Features, temb: Temb, keys: DropoutKeys) -> Features:
        """Apply ResNet block number `i`, and its attention where the stage has one."""
        args = (self.features, self.dropout, self.num_groups, self.dtype)
        h = ResnetBlock(*args, name=f"block_{i}")(h, temb, keys)
        if self.attention:
            h = SelfAttention(self.num_groups, self.dtype, name=f"attn_{i}")(h)
        return h


class DownStage(Stage):
    """One resolution of the contracting path."""

    num_blocks: int
    downsample: bool
    resamp_with_conv: bool

    @nn.compact
    def __call__(self, h: Features, temb: Temb, keys: DropoutKeys) -> list[Features]:
        """Every output of the stage; they are the skip connections."""
        outputs = []
        for i in range(self.num_blocks):
            h = self.block(i, h, temb, keys)
            outputs.append(h)
        if self.downsample and self.resamp_with_conv:
            args = (self.features, 3, "downsample", self.dtype)
            # Zeros below and on the right only: TensorFlow's SAME.
            outputs.append(conv(h, *args, stride=2, padding=(0, 1), init=INIT))
        elif self.downsample:
            outputs.append(downsample_mean(h))
        return outputs


class UpStage(Stage):
    """One resolution of the expanding path."""

    upsample: bool
    resamp_with_conv: bool

    @nn.compact
    def __call__(
        self, h: Features, skips: list[Features], temb: Temb, keys: DropoutKeys
    ) -> Features:
        """Apply one block per skip connection, the newest first."""
        for i, skip in enumerate(skips):
            h = self.block(i, jnp.concatenate([h, skip], axis=-1), temb, keys)
        h = upsample_nearest(h) if self.upsample else h
        if self.upsample and self.resamp_with_conv:
            h = conv(h, self.features, 3, "upsample", self.dtype, init=INIT)
        return h


class Middle(nn.Module):
    """ResNet block, attention, ResNet block at the lowest resolution."""

    features: int
    dropout: float
    num_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, h: Features, temb: Temb, keys: DropoutKeys) -> Features:
        args = (self.features, self.dropout, self.num_groups, self.dtype)
        h = ResnetBlock(*args, name="block_1")(h, temb, keys)
        h = SelfAttention(self.num_groups, self.dtype, name="attn_1")(h)
        return ResnetBlock(*args, name="block_2")(h, temb, keys)


class UNet(NetworkModule):
    """The network of Ho et al. 2020; the defaults are its CIFAR-10 size, 35,746,307 parameters.

    Stage i works at 1/2^i of the image's size with channels * channel_mult[i] channels. Images
    whose sides are not multiples of 2^(number of stages - 1) are padded with zeros inside, and the
    output is cropped.
    """

    config: UNetConfig = UNetConfig()

    def forward(
        self,
        x_t: Features,
        t: Num[Array, " b"],
        label: Int[Array, " b"] | None,
        dropout_keys: DropoutKeys,
    ) -> Features:
        config, last = self.config, len(self.config.channel_mult) - 1
        x_t, crop = pad_to_multiple(x_t, 2**last)

        temb = self._embed(t, label)
        h = conv(x_t, config.channels, 3, "conv_in", self.dtype, init=INIT)
        skips = [h]
        for i in range(last + 1):
            args = (config.num_res_blocks, i < last, config.resamp_with_conv)
            down = DownStage(*self._stage(i), *args, name=f"down_{i}")
            skips += down(skips[-1], temb, dropout_keys)
        features, _, *rest = self._stage(last)
        h = Middle(features, *rest, name="mid")(skips[-1], temb, dropout_keys)
        for i in reversed(range(last + 1)):
            newest = [skips.pop() for _ in range(config.num_res_blocks + 1)]
            up = UpStage(*self._stage(i), i > 0, config.resamp_with_conv, name=f"up_{i}")
            h = up(h, newest, temb, dropout_keys)

        h = nn.silu(GroupNorm(config.num_groups, self.dtype, EPS, name="norm_out")(h))
        return crop(conv(h, self.out_channels, 3, "conv_out", self.dtype, init=ALMOST_ZERO))

    def _embed(self, t: Num[Array, " b"], label: Int[Array, " b"] | None) -> Temb:
        config, width = self.config, 4 * self.config.channels
        h = timestep_embedding(t, config.channels, statistics_dtype(self.dtype))
        temb = MLP(width, nn.silu, self.dtype, INIT, name="temb")(h)
        if config.num_classes is None:
            return temb
        return temb + LabelEmbedding(config.num_classes, width, self.dtype, name="label_emb")(label)

    def _stage(self, i: int) -> tuple[int, bool, float, int, Dtype]:
        config = self.config
        features = config.channels * config.channel_mult[i]
        return features, i in config.attn_levels, config.dropout, config.num_groups, self.dtype


def pad_to_multiple(x: Features, multiple: int) -> tuple[Features, Callable[[Features], Features]]:
    """Pad height and width evenly with zeros to multiples; also return the function that crops."""
    height, width = x.shape[1:3]
    extra_h, extra_w = -height % multiple, -width % multiple
    top, left = extra_h // 2, extra_w // 2
    padding = ((0, 0), (top, extra_h - top), (left, extra_w - left), (0, 0))
    return jnp.pad(x, padding), lambda y: y[:, top : top + height, left : left + width]
