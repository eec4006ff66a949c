"""MyUNet of BrianPulfer's DDPM tutorial, with layer norms and one skip per resolution."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jax_ddpm.errors import UserError
from jax_ddpm.models.architecture import Architecture, ImageShape
from jax_ddpm.models.initializers import ONES, ZEROS, Initializer, Shape
from jax_ddpm.models.layers import (
    MLP,
    DoublingConv,
    DropoutKeys,
    Dtype,
    Features,
    Segment,
    Temb,
    conv,
    conv_transpose,
)
from jax_ddpm.models.network import NetworkModule

SIDE = 28  # the norms' parameters have one entry per pixel


@dataclass(frozen=True)
class PulferConfig(Architecture):
    """MyUNet of BrianPulfer's tutorial, for grey images of 28x28 pixels."""

    n_steps: int = 1000
    """Rows of the table of time embeddings: the largest number of timesteps."""
    time_emb_dim: int = 100
    """Columns of the table of time embeddings."""

    def module(self, out_channels: int, dtype: Any) -> "PulferUNet":
        if out_channels != 1:
            raise UserError(f"this network has 1 output channel, but {out_channels} are needed")
        return PulferUNet(self, 1, dtype)

    def check(self) -> None:
        super().check()
        self.require(self.n_steps >= 1, "n_steps", "at least 1")
        self.require(self.time_emb_dim >= 1, "time_emb_dim", "at least 1")

    def check_sides(self, height: int, width: int) -> None:
        if (height, width) != (SIDE, SIDE):
            raise UserError(
                f"the images are {height}x{width}, but this network needs {SIDE}x{SIDE}"
            )

    @property
    def image_channels(self) -> int | None:
        return 1

    @property
    def example_shape(self) -> ImageShape:
        return SIDE, SIDE, 1

    @property
    def num_timesteps(self) -> int | None:
        return self.n_steps


def interleaved_embedding(n: int, dim: int, dtype: Dtype = jnp.float32) -> Float[Array, "n d"]:
    """Columns 2p and 2p + 1: sine and cosine of t * 10000^(-4p/dim), for t in 0..n-1.

    The exponent is twice as large as in Vaswani et al. 2017: the tutorial skips every other
    frequency.
    """
    frequencies = jnp.asarray([10000 ** (-2 * j / dim) for j in range(0, dim, 2)], dtype)
    angles = jnp.arange(n).astype(dtype)[:, None] * frequencies[None]  # [n, ceil(dim/2)]
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(n, -1)[:, :dim]


def compute_embedding(shape: Shape) -> np.ndarray:
    """Compute the table of `shape` at once, also where the network is being traced."""
    with jax.ensure_compile_time_eval():
        return np.asarray(interleaved_embedding(*shape))


class TimeEmbedding(nn.Module):
    """A table of sines and cosines: a parameter, so that it is saved, but never trained."""

    n_steps: int
    dim: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, t: Num[Array, " b"]) -> Temb:
        """Look up the rows of t; they are NaN beyond the table."""
        table = self.param("embedding", Initializer(compute_embedding), (self.n_steps, self.dim))
        rows = jnp.take(table, t.astype(jnp.int32), axis=0, mode="fill", fill_value=jnp.nan)
        return jax.lax.stop_gradient(rows).astype(self.dtype)


class Block(Segment):
    """Layer norm over the whole image, then two 3x3 convolutions with SiLU; no shortcut."""

    features: int
    normalize: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, h: Features) -> Features:
        norm = nn.LayerNorm(
            epsilon=1e-5,
            dtype=self.dtype,
            reduction_axes=(1, 2, 3),
            feature_axes=(1, 2, 3),
            use_fast_variance=False,
            scale_init=ONES,
            bias_init=ZEROS,
            name="norm",
        )
        normalised = norm(h)  # the norm has parameters even where it is not used
        h = normalised if self.normalize else h
        h = nn.silu(conv(h, self.features, 3, "conv1", self.dtype))
        return nn.silu(conv(h, self.features, 3, "conv2", self.dtype))


class Stage(nn.Module):
    """One resolution of one path: shift by the time, blocks, perhaps the step to the next stage."""

    dtype: Dtype
    features: tuple[int, ...]
    leave: Callable[[Features, Dtype], Features] | None = None
    normalize_last: bool = True

    @nn.compact
    def __call__(self, h: Features, temb: Temb) -> tuple[Features, Features]:
        """The skip connection, and the input of the next stage."""
        shift = MLP(h.shape[-1], nn.silu, self.dtype, name="temb")(temb)
        h = h + shift[:, None, None, :]
        for j, features in enumerate(self.features):
            normalize = self.normalize_last or j < len(self.features) - 1
            h = Block(features, normalize, self.dtype, name=f"block_{j}")(h)
        return h, self.leave(h, self.dtype) if self.leave else h


def halve(h: Features, dtype: Dtype) -> Features:
    """28 to 14, 14 to 7 pixels."""
    return conv(h, h.shape[-1], 4, "downsample", dtype, stride=2, padding=(1, 1))


def shrink_to_three(h: Features, dtype: Dtype) -> Features:
    """7 pixels to 6, then to 3."""
    h = nn.silu(conv(h, h.shape[-1], 2, "downsample_0", dtype, padding=(0, 0)))
    return conv(h, h.shape[-1], 4, "downsample_1", dtype, stride=2, padding=(1, 1))


def grow_to_seven(h: Features, dtype: Dtype) -> Features:
    """3 pixels to 6, then to 7."""
    c = h.shape[-1]
    h = nn.silu(DoublingConv(c, dtype, name="upsample_0")(h))
    return conv_transpose(h, c, 2, "upsample_1", dtype, padding=0)


def double(h: Features, dtype: Dtype) -> Features:
    """7 to 14, 14 to 28 pixels."""
    return DoublingConv(h.shape[-1], dtype, name="upsample")(h)


def join(skip: Features, h: Features) -> Features:
    """Concatenate channels, the skip connection first."""
    return jnp.concatenate([skip, h], axis=-1)


class PulferUNet(NetworkModule):
    """MyUNet: four resolutions (28, 14, 7, 3), one skip connection each, no attention, no dropout.

    506,852 trainable parameters where the table of time embeddings has 100 columns.
    """

    config: PulferConfig
    out_channels: int = 1

    def forward(
        self, x_t: Features, t: Num[Array, " b"], label: None, dropout_keys: DropoutKeys
    ) -> Features:
        rows, columns = self.config.n_steps, self.config.time_emb_dim
        temb = TimeEmbedding(rows, columns, self.dtype, name="time_embed")(t)

        def stage(name: str, features: tuple[int, ...], *args: Any) -> Stage:
            return Stage(self.dtype, features, *args, name=name)

        skip_0, h = stage("down_0", (10, 10, 10), halve)(x_t, temb)
        skip_1, h = stage("down_1", (20, 20, 20), halve)(h, temb)
        skip_2, h = stage("down_2", (40, 40, 40), shrink_to_three)(h, temb)
        _, h = stage("mid", (20, 20, 40), grow_to_seven)(h, temb)
        _, h = stage("up_2", (40, 20, 20), double)(join(skip_2, h), temb)
        _, h = stage("up_1", (20, 10, 10), double)(join(skip_1, h), temb)
        h, _ = stage("up_0", (10, 10, 10), None, False)(join(skip_0, h), temb)
        return conv(h, 1, 3, "conv_out", self.dtype)
