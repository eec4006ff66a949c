"""The U-Net of lucidrains' `denoising_diffusion_pytorch` from 0.27.3 to 1.7.0.

It has the stages of the later one, but standardises the weights of its ResNet blocks, and its
attention has a layer norm and no learned keys. eps is 1e-5; theirs is 1e-3 in float64 as well as in
half precision, which is not followed.
"""

from dataclasses import dataclass
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_ddpm.models.annotated import ChannelNorm, linear_attention
from jax_ddpm.models.annotated_ws import StandardizedConv
from jax_ddpm.models.layers import (
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
from jax_ddpm.models.lucidrains import LucidrainsBase
from jax_ddpm.models.lucidrains_layers import EPS

HEADS, HEAD_DIM = 4, 32  # of every attention, whatever the width
SCALE = 10.0  # of normalised products


@dataclass(frozen=True)
class LucidrainsV1Config(LucidrainsBase):
    """lucidrains' U-Net of releases 0.27.3 to 1.7.0, with the defaults of 1.5."""

    resnet_block_groups: int = 8
    """Groups of the group norms in ResNet blocks."""
    downsampling: Literal["unshuffle", "conv"] = "unshuffle"
    """How height and width are halved. unshuffle: four pixels become the channels of one, since
    0.32. conv: a 4x4 convolution, before."""
    cosine_attention: bool = False
    """Softmax of 10 times the products of queries and keys that are scaled to length 1 over the
    pixels, as it was before 0.29."""

    def make_block(self, features: int, name: str, dtype: Dtype) -> nn.Module:
        return ResnetBlock(features, self.resnet_block_groups, dtype, name=name)

    def make_attention(self, stage: int, name: str, dtype: Dtype) -> nn.Module:
        if stage == -1:
            return FullAttention(dtype, self.cosine_attention, name=name)
        return LinearAttention(dtype, name=name)

    def downsample(self, h: Features, features: int, dtype: Dtype) -> Features:
        if self.downsampling == "conv":
            return conv(h, features, 4, "conv", dtype, stride=2, padding=(1, 1))
        return super().downsample(h, features, dtype)

    def check(self) -> None:
        super().check()
        self.check_groups(self.resnet_block_groups)


class ResnetBlock(Segment):
    """Two standardised convolutions, the first scaled and shifted by the time, plus a shortcut."""

    features: int
    num_groups: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Features, temb: Temb, keys: DropoutKeys) -> Features:
        modulation = dense(nn.silu(temb), 2 * self.features, "temb_proj", self.dtype)
        scale, shift = jnp.split(modulation[:, None, None, :], 2, axis=-1)
        h = nn.silu(self.convolve(x, 1) * (scale + 1) + shift)
        h = nn.silu(self.convolve(h, 2))
        if x.shape[-1] != self.features:
            x = conv(x, self.features, 1, "shortcut", self.dtype)
        return h + x

    def convolve(self, x: Features, i: int) -> Features:
        """Apply convolution and norm number `i`."""
        h = StandardizedConv(self.features, "multiply", self.dtype, name=f"conv{i}")(x)
        return GroupNorm(self.num_groups, self.dtype, EPS, name=f"norm{i}")(h)


class Attention(Segment):
    """What both kinds of attention share."""

    dtype: Dtype

    def project(self, x: Features) -> Float[Array, "3 bh n d"]:
        """Queries, keys and values of each head, after a norm."""
        x = ChannelNorm(self.dtype, use_bias=False, name="norm")(x)
        qkv = conv(x, 3 * HEADS * HEAD_DIM, 1, "qkv", self.dtype, use_bias=False)
        qkv = qkv.reshape(x.shape[0], -1, 3, HEADS, HEAD_DIM).transpose(2, 0, 3, 1, 4)
        return qkv.reshape(3, x.shape[0] * HEADS, -1, HEAD_DIM)

    def merge(self, h: Float[Array, "bh n d"], x: Features) -> Features:
        """Lay the heads side by side and project them to the channels of x."""
        b, height, width, channels = x.shape
        h = h.reshape(b, HEADS, height, width, HEAD_DIM).transpose(0, 2, 3, 1, 4)
        h = h.reshape(b, height, width, HEADS * HEAD_DIM)
        return conv(h, channels, 1, "proj_out", self.dtype)


class LinearAttention(Attention):
    """Attention whose cost is linear in the pixels, normalised at the end.

    The values are divided by the number of pixels, so that half precision does not overflow.
    """

    @nn.compact
    def __call__(self, x: Features) -> Features:
        q, k, v = self.project(x)
        h = linear_attention(q, k, v / v.shape[1])
        return ChannelNorm(self.dtype, use_bias=False, name="norm_out")(self.merge(h, x))


class FullAttention(Attention):
    """Softmax attention.

    `cosine`: of 10 times the products of normalised queries and keys. As published, each channel is
    normalised over the pixels, where cosines would need each pixel's channels.
    """

    cosine: bool

    @nn.compact
    def __call__(self, x: Features) -> Features:
        q, k, v = self.project(x)
        if self.cosine:  # `attention` divides by the square root of the head's size
            q, k = SCALE * HEAD_DIM**0.5 * normalise(q), normalise(k)
        return self.merge(attention(q, k, v), x)


def normalise(x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    """Scale each channel to length 1 over the pixels, summing in float32 or better."""
    wide = x.astype(statistics_dtype(x.dtype))
    length = jnp.sqrt(jnp.maximum((wide**2).sum(-2, keepdims=True), 1e-24))
    return (wide / length).astype(x.dtype)
