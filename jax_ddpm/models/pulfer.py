"""MyUNet of BrianPulfer's DDPM tutorial: 28x28 grey images, layer norms, one skip per level."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_ddpm.models.base import Architecture, ImageShape, require
from jax_ddpm.models.layers import Features, Segment, statistics_dtype, torch_uniform

Temb = Float[Array, "b e"]
IMAGE_SHAPE = (28, 28, 1)  # the norms' parameters have one entry per pixel
# 1/sqrt(fan_in) times a uniform number in [-1, 1): PyTorch's initial kernels
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclass(frozen=True)
class PulferConfig(Architecture):
    """MyUNet of BrianPulfer's tutorial, for grey images of 28x28 pixels."""

    n_steps: int = 1000
    """Rows of the table of time embeddings: the longest chain that the network can follow."""
    time_emb_dim: int = 100
    """Columns of the table of time embeddings."""

    def module(self, out_channels: int, dtype: Any) -> "PulferUNet":
        """The Linen module; raises ValueError unless it is to give one channel."""
        if out_channels != 1:
            raise ValueError(f"this network has 1 output channel, {out_channels} are asked for")
        return PulferUNet(self.n_steps, self.time_emb_dim, dtype)

    def check(self) -> None:
        """Raise ValueError for the first setting that cannot work."""
        require(self.n_steps >= 1, "n-steps", self.n_steps, "at least 1")
        require(self.time_emb_dim >= 1, "time-emb-dim", self.time_emb_dim, "at least 1")

    @property
    def num_timesteps(self) -> int | None:
        """The rows of its table."""
        return self.n_steps

    @property
    def example_shape(self) -> ImageShape:
        """The only images that it takes."""
        return IMAGE_SHAPE


def interleaved_embedding(n: int, dim: int, dtype: Any = jnp.float32) -> Float[Array, "n d"]:
    """Columns 2p and 2p + 1: sine and cosine of t * 10000^(-4p/dim), for t in 0..n-1.

    The exponent is twice that of Vaswani et al. 2017: the tutorial takes every other frequency.
    """
    frequencies = jnp.asarray([10000 ** (-2 * j / dim) for j in range(0, dim, 2)], dtype)
    angles = jnp.arange(n).astype(dtype)[:, None] * frequencies[None]  # [n, ceil(dim/2)]
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(n, -1)[:, :dim]


def conv(
    h: Features, features: int, size: int, stride: int, padding: int, name: str, dtype: Any
) -> Features:
    """A square convolution with zeros on all sides."""
    layer = nn.Conv(
        features,
        (size, size),
        stride,
        padding=padding,
        kernel_init=KERNEL_INIT,
        bias_init=torch_uniform(size**2 * h.shape[-1]),
        dtype=dtype,
        name=name,
    )
    return layer(h)


def conv_transpose(
    h: Features, size: int, stride: int, padding: int, name: str, dtype: Any
) -> Features:
    """The transpose of a square convolution (PyTorch's ConvTranspose2d), as many channels as h."""
    features = h.shape[-1]
    layer = nn.ConvTranspose(
        features,
        (size, size),
        (stride, stride),
        padding=((size - 1 - padding, size - 1 - padding),) * 2,
        transpose_kernel=True,
        kernel_init=KERNEL_INIT,
        bias_init=torch_uniform(size**2 * features),
        dtype=dtype,
        name=name,
    )
    return layer(h)


class TimeEmbedding(nn.Module):
    """A table of sines and cosines; a parameter, so that it is saved, but one that never learns."""

    n_steps: int
    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, t: Int[Array, " b"]) -> Temb:
        """The rows of t; not a number where there is none."""
        table = self.param("embedding", self._init)
        rows = jnp.take(table, t.astype(jnp.int32), axis=0, mode="fill", fill_value=jnp.nan)
        return jax.lax.stop_gradient(rows).astype(self.dtype)

    def _init(self, key: Key[Array, ""]) -> Float[Array, "n d"]:
        return interleaved_embedding(self.n_steps, self.dim)


class TimeShift(nn.Module):
    """Two dense layers with SiLU between: the shift of a level's input."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, temb: Temb) -> Temb:
        """One number per channel."""
        return self._dense("dense_1", nn.silu(self._dense("dense_0", temb)))

    def _dense(self, name: str, h: Temb) -> Temb:
        bias_init = torch_uniform(h.shape[-1])
        layer = nn.Dense(
            self.features, dtype=self.dtype, kernel_init=KERNEL_INIT, bias_init=bias_init, name=name
        )
        return layer(h)


class Block(Segment):
    """Layer norm over the whole image, then two 3x3 convolutions with SiLU; nothing is added."""

    features: int
    normalize: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Features) -> Features:
        """h, transformed."""
        norm = nn.LayerNorm(
            epsilon=1e-5, dtype=self.dtype, reduction_axes=(1, 2, 3), feature_axes=(1, 2, 3),
            use_fast_variance=False, name="norm",
        )  # fmt: skip
        normalised = norm(h)  # the norm has parameters even where it is not used
        h = normalised if self.normalize else h
        h = nn.silu(conv(h, self.features, 3, 1, 1, "conv1", self.dtype))
        return nn.silu(conv(h, self.features, 3, 1, 1, "conv2", self.dtype))


class Level(nn.Module):
    """One resolution of one path: shift by the time, blocks, perhaps the way to the next level."""

    dtype: Any
    features: tuple[int, ...]
    leave: Callable[[Features, Any], Features] | None = None
    normalize_last: bool = True

    @nn.compact
    def __call__(self, h: Features, temb: Temb) -> tuple[Features, Features]:
        """What the level makes of h, and the same on its way to the next level."""
        h = h + TimeShift(h.shape[-1], self.dtype, name="temb")(temb)[:, None, None, :]
        for j, features in enumerate(self.features):
            normalize = self.normalize_last or j < len(self.features) - 1
            h = Block(features, normalize, self.dtype, name=f"block_{j}")(h)
        return h, self.leave(h, self.dtype) if self.leave else h


def halve(h: Features, dtype: Any) -> Features:
    """28 to 14, 14 to 7 pixels."""
    return conv(h, h.shape[-1], 4, 2, 1, "downsample", dtype)


def seven_to_three(h: Features, dtype: Any) -> Features:
    """7 pixels to 6, then to 3."""
    h = nn.silu(conv(h, h.shape[-1], 2, 1, 0, "downsample_0", dtype))
    return conv(h, h.shape[-1], 4, 2, 1, "downsample_1", dtype)


def three_to_seven(h: Features, dtype: Any) -> Features:
    """3 pixels to 6, then to 7."""
    h = nn.silu(conv_transpose(h, 4, 2, 1, "upsample_0", dtype))
    return conv_transpose(h, 2, 1, 0, "upsample_1", dtype)


def double(h: Features, dtype: Any) -> Features:
    """7 to 14, 14 to 28 pixels."""
    return conv_transpose(h, 4, 2, 1, "upsample", dtype)


class PulferUNet(nn.Module):
    """MyUNet: four resolutions (28, 14, 7, 3), skip connections once per level, no attention.

    506,852 trainable parameters where the table of time embeddings has 100 columns.
    """

    n_steps: int = 1000
    time_emb_dim: int = 100
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_t: Features,
        t: Int[Array, " b"],
        *,
        train: bool = False,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Features:
        """The output [b, 28, 28, 1] for images x_t [b, 28, 28, 1] at t in 0..n_steps-1.

        There is no dropout. Raises ValueError for images of another shape.
        """
        if x_t.shape[1:] != IMAGE_SHAPE:
            raise ValueError(f"this network takes images of shape 28x28x1, not {x_t.shape[1:]}")
        temb = TimeEmbedding(self.n_steps, self.time_emb_dim, self.dtype, name="time_embed")(t)

        def level(name: str, features: tuple[int, ...], *args: Any) -> Level:
            return Level(self.dtype, features, *args, name=name)

        skip_0, h = level("down_0", (10, 10, 10), halve)(x_t.astype(self.dtype), temb)
        skip_1, h = level("down_1", (20, 20, 20), halve)(h, temb)
        skip_2, h = level("down_2", (40, 40, 40), seven_to_three)(h, temb)
        _, h = level("mid", (20, 20, 40), three_to_seven)(h, temb)
        _, h = level("up_2", (40, 20, 20), double)(join(skip_2, h), temb)
        _, h = level("up_1", (20, 10, 10), double)(join(skip_1, h), temb)
        h, _ = level("up_0", (10, 10, 10), None, False)(join(skip_0, h), temb)
        h = conv(h, 1, 3, 1, 1, "conv_out", self.dtype)
        return h.astype(statistics_dtype(self.dtype))


def join(skip: Features, h: Features) -> Features:
    """Both side by side, the skip connection first."""
    return jnp.concatenate([skip, h], axis=-1)
