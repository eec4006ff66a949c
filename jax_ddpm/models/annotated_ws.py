"""The later U-Net of "The Annotated Diffusion Model": weight-standardised convolutions."""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_ddpm.models.annotated import (
    EPS,
    Attention,
    Temb,
    TimeMLP,
    add_shortcut,
    check_groups,
    check_widths,
    conv,
    dense,
)
from jax_ddpm.models.base import Architecture, ImageShape, require, require_positive
from jax_ddpm.models.layers import (
    Dtype,
    Features,
    GroupNorm,
    Segment,
    statistics_dtype,
    torch_uniform,
    upsample_nearest,
)

WeightStandardization = Literal["multiply", "divide"]


@dataclass(frozen=True)
class AnnotatedWSConfig(Architecture):
    """The later U-Net of the Annotated Diffusion Model."""

    dim: int = 28
    """Channels of the first level; the time embedding has four times as many."""
    init_dim: int | None = None
    """Channels of the first convolution; None: dim, and nothing else works."""
    out_dim: int | None = None
    """Channels of the output; None: those of the data, twice as many with a learned variance."""
    dim_mults: tuple[int, ...] = (1, 2, 4)
    """Channels of what each level hands down, as multiples; all but the last halve the size."""
    channels: int | None = None
    """Channels of the images; None: those of the data."""
    self_condition: bool = False
    """Also take the previous estimate of the clean image (Chen et al. 2022)."""
    resnet_block_groups: int = 4
    """Groups of the group normalisation in ResNet blocks."""
    weight_standardization: WeightStandardization = "multiply"
    """By the inverse standard deviation. divide: the slip that was published from October 2023 to
    November 2024."""

    def module(self, out_channels: int, dtype: Any) -> "AnnotatedWSUNet":
        """The Linen module; see the base class."""
        return AnnotatedWSUNet(self, self.out_dim or out_channels, dtype)

    def check(self) -> None:
        """Raise ValueError for the first setting that cannot work."""
        check_widths(self.dim, self.dim_mults)
        require_positive(self, "out_dim", "channels")
        # the last block sees the first convolution's output beside dim channels, and counts on dim
        require(self.init_dim in (None, self.dim), "init-dim", self.init_dim, f"dim, {self.dim}")
        check_groups(self.resnet_block_groups, self.dim)

    @property
    def example_shape(self) -> ImageShape:
        """An image of the network."""
        side = 2 ** (len(self.dim_mults) - 1)
        return side, side, self.channels or 3


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
        """Convolve x."""
        shape = (3, 3, x.shape[-1], self.features)
        init = torch_uniform(9 * x.shape[-1])
        kernel = self.param("kernel", init, shape, jnp.float32)
        bias = self.param("bias", init, (self.features,), jnp.float32)
        kernel = standardize(kernel.astype(statistics_dtype(self.dtype)), self.method, self.dtype)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        padding, layout = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layout)
        return y + bias[None, None, None]


def standardize(
    kernel: Float[Array, "h w i o"], method: WeightStandardization, dtype: Dtype
) -> Float[Array, "h w i o"]:
    """The kernel of each output less its mean, times or by its inverse standard deviation."""
    eps = EPS if statistics_dtype(dtype) == dtype else 1e-3
    centred = kernel - kernel.mean((0, 1, 2), keepdims=True)
    factor = jax.lax.rsqrt((centred**2).mean((0, 1, 2), keepdims=True) + eps)
    return centred * factor if method == "multiply" else centred / factor


class ResnetBlock(Segment):
    """Two blocks of convolution, group norm and SiLU, plus a shortcut; time modulates the first."""

    features: int
    config: AnnotatedWSConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features, temb: Temb) -> Features:
        """Features x at the time embedding temb."""
        modulation = dense(nn.silu(temb), 2 * self.features, "temb_proj", self.dtype)
        scale, shift = jnp.split(modulation[:, None, None, :], 2, axis=-1)
        h = nn.silu(self.normalised(x, 1) * (scale + 1) + shift)
        return add_shortcut(nn.silu(self.normalised(h, 2)), x, self.dtype)

    def normalised(self, x: Features, i: int) -> Features:
        """Convolution and norm number `i`."""
        method, groups = self.config.weight_standardization, self.config.resnet_block_groups
        h = StandardizedConv(self.features, method, self.dtype, name=f"conv{i}")(x)
        return GroupNorm(groups, self.dtype, EPS, name=f"norm{i}")(h)


class Part(nn.Module):
    """What the parts of the network share: the width of their blocks, and of what they hand on."""

    features: int
    out_features: int
    config: AnnotatedWSConfig
    dtype: Any

    def block(self, x: Features, temb: Temb, name: str) -> Features:
        """The block called `name`."""
        return ResnetBlock(self.features, self.config, self.dtype, name=name)(x, temb)

    def attention(self, x: Features, *, linear: bool = True) -> Features:
        """The part's one attention."""
        return Attention(linear, "group", self.dtype, name="attn_1")(x)


class DownLevel(Part):
    """One resolution of the contracting path."""

    downsample: bool

    @nn.compact
    def __call__(self, h: Features, temb: Temb) -> tuple[list[Features], Features]:
        """The level's two outputs, for the other path, and what the next level works on."""
        skips = [self.block(h, temb, "block_0")]
        skips.append(self.attention(self.block(skips[0], temb, "block_1")))
        if self.downsample:
            h = conv(fold_pixels(skips[1]), self.out_features, 1, "downsample", self.dtype)
        else:
            h = conv(skips[1], self.out_features, 3, "conv", self.dtype)
        return skips, h


class UpLevel(Part):
    """One resolution of the expanding path; each block also sees an output of the other path."""

    upsample: bool

    @nn.compact
    def __call__(self, h: Features, skips: list[Features], temb: Temb) -> Features:
        """h after both blocks, the newest output first."""
        h = self.block(jnp.concatenate([h, skips[1]], axis=-1), temb, "block_0")
        h = self.block(jnp.concatenate([h, skips[0]], axis=-1), temb, "block_1")
        h = self.attention(h)
        if self.upsample:
            return conv(upsample_nearest(h), self.out_features, 3, "upsample", self.dtype)
        return conv(h, self.out_features, 3, "conv", self.dtype)


class Middle(Part):
    """Block, full attention, block at the lowest resolution."""

    @nn.compact
    def __call__(self, h: Features, temb: Temb) -> Features:
        """h, transformed."""
        h = self.attention(self.block(h, temb, "block_1"), linear=False)
        return self.block(h, temb, "block_2")


class AnnotatedWSUNet(nn.Module):
    """The later U-Net of the Annotated Diffusion Model.

    Level i works at 1/2^i of the image's size, with as many channels as the level above hands
    down, dim * dim_mults[i - 1], and dim at the first.
    """

    config: AnnotatedWSConfig
    out_channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_t: Features,
        t: Int[Array, " b"],
        *,
        x_self_cond: Features | None = None,
        train: bool = False,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Features:
        """The raw output [b, h, w, out_channels], float32 or better, for images x_t at timesteps t.

        Without `x_self_cond` a network that takes one sees zeros; nothing depends on `train`.
        """
        config, last = self.config, len(self.config.dim_mults) - 1
        check_sides(x_t, last)
        temb = TimeMLP(config.dim, self.dtype, name="temb")(t)
        x_t = with_self_condition(x_t, x_self_cond, config.self_condition).astype(self.dtype)
        first = h = conv(x_t, config.dim, 1, "conv_in", self.dtype)
        sizes = [config.dim, *(config.dim * mult for mult in config.dim_mults)]
        skips = []
        for i in range(last + 1):
            kind = (sizes[i], sizes[i + 1], config, self.dtype)
            outputs, h = DownLevel(*kind, i < last, name=f"down_{i}")(h, temb)
            skips.append(outputs)
        h = Middle(sizes[-1], sizes[-1], config, self.dtype, name="mid")(h, temb)
        for i in reversed(range(last + 1)):
            kind = (sizes[i + 1], sizes[i], config, self.dtype)
            h = UpLevel(*kind, i > 0, name=f"up_{i}")(h, skips[i], temb)
        h = jnp.concatenate([h, first], axis=-1)
        h = ResnetBlock(config.dim, config, self.dtype, name="block_out")(h, temb)
        h = conv(h, self.out_channels, 1, "conv_out", self.dtype)
        return h.astype(statistics_dtype(self.dtype))


def with_self_condition(x_t: Features, estimate: Features | None, wanted: bool) -> Features:
    """The estimate (zeros if there is none) before the image, where it is `wanted`."""
    if not wanted:
        if estimate is not None:
            raise TypeError("this network takes no x_self_cond: its self_condition is off")
        return x_t
    estimate = jnp.zeros_like(x_t) if estimate is None else estimate
    return jnp.concatenate([estimate, x_t], axis=-1)


def fold_pixels(x: Features) -> Features:
    """Halve height and width; each 2x2 square becomes channels, those of one channel together."""
    b, height, width, c = x.shape
    x = x.reshape(b, height // 2, 2, width // 2, 2, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, height // 2, width // 2, 4 * c)


def check_sides(x_t: Features, halvings: int) -> None:
    """Raise ValueError unless both sides halve so many times."""
    if any(side % 2**halvings for side in x_t.shape[1:3]):
        height, width = x_t.shape[1:3]
        raise ValueError(
            f"this network has {halvings + 1} levels and takes images whose sides are multiples of "
            f"{2**halvings}, not {height}x{width}: choose another size or fewer --model.dim-mults"
        )
