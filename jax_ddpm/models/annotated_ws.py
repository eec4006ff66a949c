"""The later U-Net of "The Annotated Diffusion Model": weight-standardised convolutions."""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jax_ddpm.models.annotated import (
    EPS,
    Attention,
    add_shortcut,
    check_groups,
    check_widths,
    embed_time,
)
from jax_ddpm.models.architecture import Architecture, ImageShape
from jax_ddpm.models.initializers import torch_uniform
from jax_ddpm.models.layers import (
    DropoutKeys,
    Dtype,
    Features,
    GroupNorm,
    Segment,
    Temb,
    conv,
    dense,
    pixel_unshuffle,
    statistics_dtype,
    upsample_nearest,
)
from jax_ddpm.models.network import NetworkModule

WeightStandardization = Literal["multiply", "divide"]


@dataclass(frozen=True)
class AnnotatedWSConfig(Architecture):
    """The later U-Net of the Annotated Diffusion Model."""

    dim: int = 28
    """Channels at full resolution; the time embedding has four times as many."""
    init_dim: int | None = None
    """Channels of the first convolution; None: dim, which is the only value that works."""
    out_dim: int | None = None
    """Channels of the output; None: the data's, or twice as many with a learned variance."""
    dim_mults: tuple[int, ...] = (1, 2, 4)
    """Channels that each resolution hands down, as multiples of dim; each resolution is half of the
    one before."""
    channels: int | None = None
    """Channels of the images; None: the data's."""
    self_condition: bool = False
    """Also take the previous estimate of the clean image (Chen et al. 2022)."""
    resnet_block_groups: int = 4
    """Groups of the group normalisation in ResNet blocks."""
    weight_standardization: WeightStandardization = "multiply"
    """multiply: multiply kernels by their inverse standard deviation. divide: divide by it, the bug
    published from October 2023 to November 2024."""

    def module(self, out_channels: int, dtype: Any) -> "AnnotatedWSUNet":
        return AnnotatedWSUNet(self, self.out_dim or out_channels, dtype)

    def check(self) -> None:
        super().check()
        check_widths(self)
        self.require_positive("out_dim", "channels")
        # the last block takes the first convolution's output with dim others, and expects 2 * dim
        self.require(self.init_dim in (None, self.dim), "init_dim", f"dim, {self.dim}")
        check_groups(self)

    @property
    def side_multiple(self) -> int:
        return int(2 ** (len(self.dim_mults) - 1))

    @property
    def image_channels(self) -> int | None:
        return self.channels

    @property
    def example_shape(self) -> ImageShape:
        return self.side_multiple, self.side_multiple, self.channels or 3

    @property
    def self_conditioned(self) -> bool:
        return self.self_condition


class StandardizedConv(nn.Module):
    """A 3x3 convolution whose kernels have mean 0 and variance 1 per output (Qiao et al. 2019).

    As published: eps is 1e-3 in half precision (there in float64 as well, which is not followed),
    and "divide" turns the variance into its square.
    """

    features: int
    method: WeightStandardization
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features) -> Features:
        shape = (3, 3, x.shape[-1], self.features)
        start = torch_uniform(9 * x.shape[-1])
        kernel = self.param("kernel", start.kernel, shape, jnp.float32)
        bias = self.param("bias", start.bias, (self.features,), jnp.float32)
        kernel = standardize(kernel.astype(statistics_dtype(self.dtype)), self.method, self.dtype)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        padding, layout = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layout)
        return y + bias[None, None, None]


def standardize(
    kernel: Float[Array, "h w i o"], method: WeightStandardization, dtype: Dtype
) -> Float[Array, "h w i o"]:
    """Subtract each output kernel's mean, then multiply (or, as published, divide) by 1/std."""
    eps = EPS if statistics_dtype(dtype) == dtype else 1e-3
    centred = kernel - kernel.mean((0, 1, 2), keepdims=True)
    factor = jax.lax.rsqrt((centred**2).mean((0, 1, 2), keepdims=True) + eps)
    return centred * factor if method == "multiply" else centred / factor


class ResnetBlock(Segment):
    """Two blocks of convolution, group norm and SiLU, the time in the first, and a shortcut."""

    features: int
    config: AnnotatedWSConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features, temb: Temb) -> Features:
        modulation = dense(nn.silu(temb), 2 * self.features, "temb_proj", self.dtype)
        scale, shift = jnp.split(modulation[:, None, None, :], 2, axis=-1)
        h = nn.silu(self.convolve(x, 1) * (scale + 1) + shift)
        return add_shortcut(nn.silu(self.convolve(h, 2)), x, self.dtype)

    def convolve(self, x: Features, i: int) -> Features:
        """Apply convolution and norm number `i`."""
        method, groups = self.config.weight_standardization, self.config.resnet_block_groups
        h = StandardizedConv(self.features, method, self.dtype, name=f"conv{i}")(x)
        return GroupNorm(groups, self.dtype, EPS, name=f"norm{i}")(h)


class Stage(nn.Module):
    """What the stages share: one resolution, and the widths of its blocks and of its output."""

    features: int
    out_features: int
    config: AnnotatedWSConfig
    dtype: Dtype

    def block(self, x: Features, temb: Temb, name: str) -> Features:
        """Apply the block called `name`."""
        return ResnetBlock(self.features, self.config, self.dtype, name=name)(x, temb)

    def attend(self, x: Features, *, linear: bool = True) -> Features:
        """Apply the stage's one attention."""
        return Attention(linear, "group", self.dtype, name="attn_1")(x)


class DownStage(Stage):
    """One resolution of the contracting path."""

    downsample: bool

    @nn.compact
    def __call__(self, h: Features, temb: Temb) -> tuple[list[Features], Features]:
        """The two skip connections, and the input of the next stage."""
        skips = [self.block(h, temb, "block_0")]
        skips.append(self.attend(self.block(skips[0], temb, "block_1")))
        if self.downsample:
            h = pixel_unshuffle(skips[1])
            return skips, conv(h, self.out_features, 1, "downsample", self.dtype)
        return skips, conv(skips[1], self.out_features, 3, "conv", self.dtype)


class UpStage(Stage):
    """One resolution of the expanding path; each block also sees a skip connection."""

    upsample: bool

    @nn.compact
    def __call__(self, h: Features, skips: list[Features], temb: Temb) -> Features:
        """Apply both blocks, with the newest skip connection first."""
        h = self.block(jnp.concatenate([h, skips[1]], axis=-1), temb, "block_0")
        h = self.block(jnp.concatenate([h, skips[0]], axis=-1), temb, "block_1")
        h = self.attend(h)
        if self.upsample:
            return conv(upsample_nearest(h), self.out_features, 3, "upsample", self.dtype)
        return conv(h, self.out_features, 3, "conv", self.dtype)


class Middle(Stage):
    """Block, full attention, block at the lowest resolution."""

    @nn.compact
    def __call__(self, h: Features, temb: Temb) -> Features:
        h = self.attend(self.block(h, temb, "block_1"), linear=False)
        return self.block(h, temb, "block_2")


class AnnotatedWSUNet(NetworkModule):
    """The later U-Net of the Annotated Diffusion Model.

    Stage i works at 1/2^i of the image's size, with as many channels as the stage above hands
    down: dim * dim_mults[i - 1], and dim at the first.
    """

    config: AnnotatedWSConfig

    def forward(
        self, x_t: Features, t: Num[Array, " b"], label: None, dropout_keys: DropoutKeys
    ) -> Features:
        config, last = self.config, len(self.config.dim_mults) - 1
        temb = embed_time(t, config.dim, self.dtype)
        first = h = conv(x_t, config.dim, 1, "conv_in", self.dtype)
        sizes = [config.dim, *(config.dim * mult for mult in config.dim_mults)]
        skips = []
        for i in range(last + 1):
            args = (sizes[i], sizes[i + 1], config, self.dtype)
            outputs, h = DownStage(*args, i < last, name=f"down_{i}")(h, temb)
            skips.append(outputs)
        h = Middle(sizes[-1], sizes[-1], config, self.dtype, name="mid")(h, temb)
        for i in reversed(range(last + 1)):
            args = (sizes[i + 1], sizes[i], config, self.dtype)
            h = UpStage(*args, i > 0, name=f"up_{i}")(h, skips[i], temb)
        h = jnp.concatenate([h, first], axis=-1)
        h = ResnetBlock(config.dim, config, self.dtype, name="block_out")(h, temb)
        return conv(h, self.out_channels, 1, "conv_out", self.dtype)
