"""The U-Net of Ho et al. 2020 (appendix B; after PixelCNN++ and Wide ResNet)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_ddpm.models.base import MAX_BLOCKS, Architecture, ImageShape, require, require_positive
from jax_ddpm.models.layers import (
    ZERO_SCALE,
    Features,
    GroupNorm,
    LabelEmbedding,
    ResnetBlock,
    SelfAttention,
    TimeEmbedding,
    conv3x3,
    statistics_dtype,
    upsample_nearest,
)

Temb = Float[Array, "b e"]
DropoutKeys = Key[Array, " b"] | None


@dataclass(frozen=True)
class UNetConfig(Architecture):
    """The U-Net of Ho et al. 2020; the defaults are its CIFAR-10 size."""

    channels: int = 128
    """Channels of the first level."""
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of each level, as multiples; each level halves the resolution."""
    num_res_blocks: int = 2
    """ResNet blocks per level."""
    attn_levels: tuple[int, ...] = (1,)
    """Levels with self-attention; 0 is the full resolution."""
    dropout: float = 0.1
    """Probability that a feature is dropped in training."""
    num_groups: int = 32
    """Groups of each group normalisation."""
    in_channels: int | None = None
    """Channels of the images; None: those of the data."""
    out_channels: int | None = None
    """Channels of the output; None: those of the data, twice as many with a learned variance."""
    num_classes: int | None = None
    """Classes of a label that the network is told; None: it takes no label."""

    def module(self, out_channels: int, dtype: Any) -> "UNet":
        """The Linen module; see the base class."""
        return UNet(self, self.out_channels or out_channels, dtype)

    def check(self) -> None:
        """Raise ValueError for the first setting that cannot work."""
        require(self.channels >= 4, "channels", self.channels, "at least 4")
        mult = self.channel_mult
        require(bool(mult) and min(mult) >= 1, "channel-mult", mult, "positive whole numbers")
        blocks = self.num_res_blocks
        require(blocks >= 1, "num-res-blocks", blocks, "at least 1")
        require(blocks <= MAX_BLOCKS, "num-res-blocks", blocks, f"at most {MAX_BLOCKS}")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        for level in self.attn_levels:
            expected = f"between 0 and {len(mult) - 1}"
            require(level in range(len(mult)), "attn-levels", level, expected)
        divides = self.num_groups >= 1 and self.channels % self.num_groups == 0
        require(divides, "num-groups", self.num_groups, f"a divisor of {self.channels} channels")
        require_positive(self, "num_classes", "in_channels", "out_channels")

    @property
    def num_labels(self) -> int | None:
        """The number of classes."""
        return self.num_classes

    @property
    def example_shape(self) -> ImageShape:
        """An image of the network."""
        return 32, 32, self.in_channels or 3


class Level(nn.Module):
    """What the two paths share: ResNet blocks of one resolution, each perhaps with attention."""

    features: int
    attention: bool
    dropout: float
    num_groups: int
    dtype: Any

    def block(self, i: int, h: Features, temb: Temb, keys: DropoutKeys) -> Features:
        """ResNet block number `i`, and its attention where the level has one."""
        args = (self.features, self.dropout, self.num_groups, self.dtype)
        h = ResnetBlock(*args, name=f"block_{i}")(h, temb, keys)
        if self.attention:
            h = SelfAttention(self.num_groups, self.dtype, name=f"attn_{i}")(h)
        return h


class DownLevel(Level):
    """One resolution of the contracting path."""

    num_blocks: int
    downsample: bool

    @nn.compact
    def __call__(self, h: Features, temb: Temb, keys: DropoutKeys) -> list[Features]:
        """Every output of the level; the other path sees them again."""
        outputs = []
        for i in range(self.num_blocks):
            h = self.block(i, h, temb, keys)
            outputs.append(h)
        if self.downsample:
            outputs.append(conv3x3(self.features, "downsample", self.dtype, stride=2)(h))
        return outputs


class UpLevel(Level):
    """One resolution of the expanding path; every block also sees the newest skip connection."""

    upsample: bool

    @nn.compact
    def __call__(
        self, h: Features, skips: list[Features], temb: Temb, keys: DropoutKeys
    ) -> Features:
        """h after one block per skip connection, the newest first."""
        for i, skip in enumerate(skips):
            h = self.block(i, jnp.concatenate([h, skip], axis=-1), temb, keys)
        if self.upsample:
            h = conv3x3(self.features, "upsample", self.dtype)(upsample_nearest(h))
        return h


class Middle(nn.Module):
    """ResNet block, attention, ResNet block at the lowest resolution."""

    features: int
    dropout: float
    num_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, h: Features, temb: Temb, keys: DropoutKeys) -> Features:
        """h, transformed."""
        args = (self.features, self.dropout, self.num_groups, self.dtype)
        h = ResnetBlock(*args, name="block_1")(h, temb, keys)
        h = SelfAttention(self.num_groups, self.dtype, name="attn_1")(h)
        return ResnetBlock(*args, name="block_2")(h, temb, keys)


class UNet(nn.Module):
    """The network of Ho et al. 2020; the defaults are its CIFAR-10 size, 35,746,307 parameters.

    Level i works at 1/2^i of the image's size with channels * channel_mult[i] channels, and with
    attention if i is in `attn_levels`. Images whose sides are not multiples of
    2^(number of levels - 1) are padded with zeros inside, and the output is cropped.
    """

    config: UNetConfig = UNetConfig()
    out_channels: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_t: Features,
        t: Int[Array, " b"],
        *,
        label: Int[Array, " b"] | None = None,
        train: bool = False,
        dropout_keys: DropoutKeys = None,
    ) -> Features:
        """The raw output [b, h, w, out_channels], float32, for images x_t at timesteps t.

        `label` in 0..num_classes-1 is for networks with classes, else it is a TypeError, as is none
        for these. Dropout is on where `train` is set and each example has a key.
        """
        config, keys = self.config, dropout_keys if train else None
        last = len(config.channel_mult) - 1
        x_t, crop = pad_to_multiple(x_t.astype(self.dtype), 2**last)

        temb = self._add_label(TimeEmbedding(config.channels, self.dtype, name="temb")(t), label)
        h = conv3x3(config.channels, "conv_in", self.dtype)(x_t)
        skips = [h]
        for i in range(last + 1):
            down = DownLevel(*self._level(i), config.num_res_blocks, i < last, name=f"down_{i}")
            skips += down(skips[-1], temb, keys)
        args = (
            config.channels * config.channel_mult[-1],
            config.dropout,
            config.num_groups,
            self.dtype,
        )
        h = Middle(*args, name="mid")(skips[-1], temb, keys)
        for i in reversed(range(last + 1)):
            up = UpLevel(*self._level(i), i > 0, name=f"up_{i}")
            h = up(h, [skips.pop() for _ in range(config.num_res_blocks + 1)], temb, keys)

        h = nn.silu(GroupNorm(config.num_groups, self.dtype, name="norm_out")(h))
        h = conv3x3(self.out_channels, "conv_out", self.dtype, scale=ZERO_SCALE)(h)
        return crop(h).astype(statistics_dtype(self.dtype))

    def _add_label(self, temb: Temb, label: Int[Array, " b"] | None) -> Temb:
        config = self.config
        if config.num_classes is not None:
            return temb + LabelEmbedding(config.num_classes, self.dtype, name="label_emb")(
                temb, label
            )
        if label is not None:
            raise TypeError("this network has no classes, but a label is given")
        return temb

    def _level(self, i: int) -> tuple[int, bool, float, int, Any]:
        config = self.config
        features = config.channels * config.channel_mult[i]
        return features, i in config.attn_levels, config.dropout, config.num_groups, self.dtype


def pad_to_multiple(x: Features, multiple: int) -> tuple[Features, Callable[[Features], Features]]:
    """Pad height and width evenly with zeros to multiples; also the function that undoes it."""
    height, width = x.shape[1:3]
    extra_h, extra_w = -height % multiple, -width % multiple
    top, left = extra_h // 2, extra_w // 2
    padding = ((0, 0), (top, extra_h - top), (left, extra_w - left), (0, 0))
    return jnp.pad(x, padding), lambda y: y[:, top : top + height, left : left + width]
