"""The rarer blocks of diffusers' UNet2DModel, from NCSN++ and k-diffusion."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_ddpm.models.layers import (
    Dropout,
    DropoutKeys,
    Features,
    GroupNorm,
    Segment,
    Temb,
    conv,
    dense,
    statistics_dtype,
)
from jax_ddpm.models.unet2d_blocks import (
    Attention,
    Carried,
    ResnetBlock,
    Style,
    count_quarter_groups,
)

ROOT_2 = math.sqrt(2.0)
SKIP_ATTENTION_GROUPS = 32
K_GROUP_SIZE = 32


def filter_binomial(
    x: Features, gain: float, *, stride: int = 1, dilation: int = 1, padding: tuple[int, int]
) -> Features:
    """Filter each channel by [1, 3, 3, 1] x [1, 3, 3, 1], scaled to sum to `gain`.

    `dilation` puts zeros between the pixels first.
    """
    taps = np.array([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = jnp.asarray(gain * np.outer(taps, taps), x.dtype)[:, :, None, None]
    return jax.lax.conv_general_dilated(
        x,
        jnp.broadcast_to(kernel, (4, 4, 1, x.shape[-1])),
        (stride, stride),
        (padding, padding),
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def downsample_fir(x: Features) -> Features:
    """Filter and halve, with zeros outside the image (NCSN++)."""
    return filter_binomial(x, 1.0, stride=2, padding=(1, 1))


def upsample_fir(x: Features) -> Features:
    """Double and filter, with zeros outside the image (NCSN++)."""
    return filter_binomial(x, 4.0, dilation=2, padding=(2, 2))


def downsample_reflect(x: Features) -> Features:
    """Filter and halve, with the image mirrored at its edges (k-diffusion)."""
    return filter_binomial(_mirror(x), 1.0, stride=2, padding=(0, 0))


def upsample_reflect(x: Features) -> Features:
    """Double and filter, with the image mirrored at its edges (k-diffusion)."""
    return filter_binomial(_mirror(x), 4.0, dilation=2, padding=(0, 0))


def _mirror(x: Features) -> Features:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")


class SkipDownStage(nn.Module):
    """SkipDownBlock2D: the downsampled image itself joins the features at every resolution."""

    features: int
    num_blocks: int
    attention: bool
    downsample: bool
    style: Style

    @nn.compact
    def __call__(
        self, h: Features, image: Features, temb: Temb, keys: DropoutKeys
    ) -> tuple[Carried, list[Features]]:
        """What goes on, and the skip connections."""
        outputs, mine = [], count_quarter_groups(self.features)
        for i in range(self.num_blocks):
            groups = (count_quarter_groups(h.shape[-1]), mine)
            args = (self.features, self.style, groups, ROOT_2)
            h = ResnetBlock(*args, name=f"block_{i}")(h, temb, keys)
            if self.attention:
                h = Attention(self.style, SKIP_ATTENTION_GROUPS, ROOT_2, name=f"attn_{i}")(h)
            outputs.append(h)
        if self.downsample:
            args = (self.features, self.style, (mine, mine), ROOT_2)
            h = ResnetBlock(*args, downsample_fir, True, name="resnet_down")(h, temb, keys)
            image = downsample_fir(image)
            dtype = self.style.dtype
            h = conv(image, self.features, 1, "skip_conv", dtype) + h
            outputs.append(h)
        return (h, image), outputs


class SkipUpStage(nn.Module):
    """SkipUpBlock2D: every resolution adds its part of the image to the part from below.

    Attention, if there is any, comes once, after all blocks.
    """

    features: int
    num_blocks: int
    attention: bool
    upsample: bool
    style: Style

    @nn.compact
    def __call__(
        self,
        h: Features,
        image: Features | None,
        skips: list[Features],
        temb: Temb,
        keys: DropoutKeys,
    ) -> Carried:
        """Apply one block per skip connection, and add to the image so far."""
        mine = count_quarter_groups(self.features)
        for i, skip in enumerate(reversed(skips)):
            groups = (self._count_groups(h.shape[-1], skip.shape[-1]), mine)
            h = jnp.concatenate([h, skip], axis=-1)
            args = (self.features, self.style, groups, ROOT_2)
            h = ResnetBlock(*args, name=f"block_{i}")(h, temb, keys)
        if self.attention:
            h = Attention(self.style, SKIP_ATTENTION_GROUPS, ROOT_2, name="attn_0")(h)
        if image is not None:
            image = upsample_fir(image)
        if self.upsample:
            dtype = self.style.dtype
            norm = GroupNorm(mine, dtype, self.style.eps, name="skip_norm")
            part = conv(jax.nn.silu(norm(h)), 3, 3, "skip_conv", dtype)
            image = part if image is None else image + part
            args = (self.features, self.style, (mine, mine), ROOT_2)
            h = ResnetBlock(*args, upsample_fir, True, name="resnet_up")(h, temb, keys)
        return h, image

    def _count_groups(self, below: int, skip: int) -> int:
        if self.attention:
            return min(below + skip // 4, 32)  # as published: the quarter is of one part only
        return count_quarter_groups(below + skip)


class AdaGroupNorm(nn.Module):
    """Group normalisation whose scale and shift are a linear map of the time embedding."""

    num_groups: int
    style: Style

    @nn.compact
    def __call__(self, x: Features, temb: Temb) -> Features:
        b, height, width, c = x.shape
        time = dense(temb, 2 * c, "linear", self.style.dtype)[:, None, None, :]
        scale, shift = jnp.split(time, 2, axis=-1)
        wide = x.astype(statistics_dtype(x.dtype))
        groups = wide.reshape(b, height * width, self.num_groups, -1)
        centred = groups - groups.mean((1, 3), keepdims=True)
        variance = (centred**2).mean((1, 3), keepdims=True)
        normed = (centred * jax.lax.rsqrt(variance + self.style.eps)).reshape(x.shape)
        return normed.astype(x.dtype) * (1 + scale) + shift


class KResnetBlock(Segment):
    """A ResNet block whose two norms take the time embedding; its shortcut has no bias."""

    features: int
    groups: tuple[int, int]
    style: Style

    @nn.compact
    def __call__(self, x: Features, temb: Temb, keys: DropoutKeys) -> Features:
        style, dtype = self.style, self.style.dtype
        h = style.act(AdaGroupNorm(self.groups[0], style, name="norm1")(x, temb))
        h = conv(h, self.features, 3, "conv1", dtype)
        h = style.act(AdaGroupNorm(self.groups[1], style, name="norm2")(h, temb))
        h = Dropout(style.dropout, name="dropout")(h, keys)
        h = conv(h, self.features, 3, "conv2", dtype)
        if x.shape[-1] != self.features:
            x = dense(x, self.features, "shortcut", dtype, use_bias=False)
        return x + h


class KDownStage(nn.Module):
    """KDownBlock2D: the downsampled features are not a skip connection."""

    features: int
    num_blocks: int
    downsample: bool
    style: Style

    @nn.compact
    def __call__(
        self, h: Features, image: Features | None, temb: Temb, keys: DropoutKeys
    ) -> tuple[Carried, list[Features]]:
        """What goes on, and the skip connections."""
        outputs: list[Array] = []
        for i in range(self.num_blocks):
            groups = (h.shape[-1] // K_GROUP_SIZE, self.features // K_GROUP_SIZE)
            h = KResnetBlock(self.features, groups, self.style, name=f"block_{i}")(h, temb, keys)
            outputs.append(h)
        return (downsample_reflect(h) if self.downsample else h, image), outputs


class KUpStage(nn.Module):
    """KUpBlock2D: only the last skip connection joins; the last block is as wide as the next."""

    features: int
    next_features: int
    num_blocks: int
    upsample: bool
    style: Style

    @nn.compact
    def __call__(
        self,
        h: Features,
        image: Features | None,
        skips: list[Features],
        temb: Temb,
        keys: DropoutKeys,
    ) -> Carried:
        h = jnp.concatenate([h, skips[-1]], axis=-1)
        for i in range(self.num_blocks):
            last = i == self.num_blocks - 1
            features = self.next_features if last else self.features
            groups = (h.shape[-1] // K_GROUP_SIZE, self.features // K_GROUP_SIZE)
            h = KResnetBlock(features, groups, self.style, name=f"block_{i}")(h, temb, keys)
        return upsample_reflect(h) if self.upsample else h, image
