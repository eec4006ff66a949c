"""The layers that the architectures share.

Every default is explicit, because frameworks differ in them silently.
"""

import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from jax_ddpm.models.initializers import ONES, ZEROS, Init, normal, torch_uniform

Features = Float[Array, "b _ _ _"]  # [b, h, w, c]; blocks change all but the batch
Temb = Float[Array, "b e"]  # the embedding of the timestep, and of the class
DropoutKeys = Key[Array, " b"] | None
Dtype = Any


def conv(
    x: Features,
    features: int,
    size: int,
    name: str | None,
    dtype: Dtype,
    *,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
    groups: int = 1,
    use_bias: bool = True,
    init: Init = torch_uniform,
) -> Features:
    """Convolve x with kernels of size x size.

    `padding` is the number of zeros before and after, on both axes. By default it is size // 2 on
    all sides, which keeps height and width where `size` is odd and `stride` is 1.
    """
    pad, start = padding or (size // 2, size // 2), init(size**2 * x.shape[-1] // groups)
    layer = nn.Conv(
        features,
        (size, size),
        stride,
        padding=(pad, pad),
        feature_group_count=groups,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=start.kernel,
        bias_init=start.bias,
        name=name,
    )
    return layer(x)


def conv_transpose(
    x: Features,
    features: int,
    size: int,
    name: str,
    dtype: Dtype,
    *,
    padding: int,
    init: Init = torch_uniform,
) -> Features:
    """Apply the transpose of a convolution with stride 1; `padding` is PyTorch's."""
    pad = (size - 1 - padding, size - 1 - padding)  # what PyTorch's padding leaves of a full one
    start = init(size**2 * features)
    layer = nn.ConvTranspose(
        features,
        (size, size),
        padding=(pad, pad),
        transpose_kernel=True,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=start.kernel,
        bias_init=start.bias,
        name=name,
    )
    return layer(x)


class DoublingConv(nn.Module):
    """The transpose of a 4x4 convolution with stride 2: PyTorch's ConvTranspose2d(c, o, 4, 2, 1).

    It is computed as a 3x3 convolution to the four pixels that each pixel becomes. On two CPU cores
    value and gradient together are 9 to 15 times as fast as those of `nn.ConvTranspose`.
    """

    features: int
    dtype: Dtype
    start: Init = torch_uniform

    @nn.compact
    def __call__(self, x: Features) -> Features:
        b, height, width, c = x.shape
        start, shape = self.start(16 * self.features), (4, 4, self.features, c)
        kernel = self.param("kernel", start.kernel, shape, jnp.float32)
        bias = self.param("bias", start.bias, (self.features,), jnp.float32)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        rows = split_phases(kernel).transpose(2, 0, 1, 3, 4)  # [4, 2, 3, o, c]
        phases = split_phases(rows).transpose(3, 1, 5, 2, 0, 4)  # [3, 3, c, 2, 2, o]
        phases, layout = phases.reshape(3, 3, c, -1), ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, phases, (1, 1), "SAME", dimension_numbers=layout)
        y = y.reshape(b, height, width, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)  # [b, h, 2, w, 2, o]
        return y.reshape(b, 2 * height, 2 * width, -1) + bias[None, None, None]


def split_phases(kernel: Float[Array, "4 *rest"]) -> Float[Array, "2 3 *rest"]:
    """Split the taps of a transposed convolution with stride 2 into those of its two phases.

    The even pixels of the output see the pixel before theirs by tap 3 and their own by tap 1. The
    odd ones see their own by tap 2 and the next by tap 0.
    """
    none = jnp.zeros_like(kernel[0])
    even, odd = (kernel[3], kernel[1], none), (none, kernel[2], kernel[0])
    return jnp.stack([jnp.stack(even), jnp.stack(odd)])


def dense(
    x: Float[Array, "*b i"],
    features: int,
    name: str | None,
    dtype: Dtype,
    *,
    use_bias: bool = True,
    init: Init = torch_uniform,
) -> Float[Array, "*b o"]:
    """Apply a linear map to the last axis: a fully connected layer, or a 1x1 convolution."""
    start = init(x.shape[-1])
    layer = nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=start.kernel,
        bias_init=start.bias,
        name=name,
    )
    return layer(x)


def statistics_dtype(dtype: Dtype) -> Dtype:
    """The dtype of sums and softmax where a network computes in `dtype`: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def gelu(x: Array) -> Array:
    """GELU by the error function; JAX's default is an approximation."""
    return nn.gelu(x, approximate=False)


def upsample_nearest(x: Features) -> Features:
    """Double height and width by repeating pixels."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def downsample_mean(x: Features) -> Features:
    """Halve height and width by averaging 2x2 pixels; an odd last row or column is dropped."""
    b, height, width, c = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(b, height // 2, 2, width // 2, 2, c).mean((2, 4))


def pixel_unshuffle(x: Features) -> Float[Array, "b h2 w2 c4"]:
    """Halve height and width; the 2x2 pixels of a channel become four neighbouring channels."""
    b, height, width, c = x.shape
    x = x.reshape(b, height // 2, 2, width // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, height // 2, width // 2, 4 * c)


def timestep_embedding(
    t: Num[Array, " b"],
    dim: int,
    dtype: Dtype = jnp.float32,
    *,
    denominator: float | None = None,
    max_period: float = 10_000.0,
    cos_first: bool = False,
) -> Float[Array, "b {dim}"]:
    """Sines and cosines of t at dim/2 frequencies, from 1 down (Vaswani et al. 2017).

    Frequency i is max_period^(-i / denominator). With the default denominator, dim/2 - 1, they end
    at 1 / max_period (Ho et al. 2020). Sines come first unless `cos_first`; an odd `dim` ends in a
    zero.
    """
    half = dim // 2
    step = math.log(max_period) / (half - 1 if denominator is None else denominator)
    frequencies = jnp.exp(-step * jnp.arange(half, dtype=dtype))
    angles = t.astype(dtype)[:, None] * frequencies[None, :]  # [b, dim/2]
    waves = [jnp.sin(angles), jnp.cos(angles)]
    embedding = jnp.concatenate(waves[::-1] if cos_first else waves, axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


class MLP(nn.Module):
    """Two dense layers of the same width with an activation between them."""

    features: int
    act: Callable[[Array], Array]
    dtype: Dtype
    start: Init = torch_uniform

    @nn.compact
    def __call__(self, x: Float[Array, "b i"]) -> Float[Array, "b o"]:
        h = self.act(dense(x, self.features, "dense_0", self.dtype, init=self.start))
        return dense(h, self.features, "dense_1", self.dtype, init=self.start)


class LabelEmbedding(nn.Module):
    """A learned vector per class, to add to the time embedding (Dhariwal & Nichol 2021)."""

    num_classes: int
    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, label: Int[Array, " b"] | None) -> Temb:
        """Look up labels in 0..num_classes-1; None, for initialisation, means class 0."""
        shape = self.num_classes, self.features
        table = self.param("embedding", normal(1.0), shape, jnp.float32)
        label = jnp.zeros((1,), jnp.int32) if label is None else jnp.asarray(label)
        return jnp.take(table.astype(self.dtype), label, axis=0)


class Segment(nn.Module):
    """A part of a network that gradient checkpointing recomputes as a whole; see remat.py."""


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) with statistics in float32 or better.

    It sums per channel, then per group, then does one multiply-add. On a CPU this is two to four
    times as fast as the textbook order.
    """

    num_groups: int
    dtype: Dtype = jnp.float32
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Features) -> Features:
        channels = x.shape[-1]
        scale = self.param("scale", ONES, (channels,), jnp.float32)
        bias = self.param("bias", ZEROS, (channels,), jnp.float32)
        wide = x.astype(statistics_dtype(self.dtype))
        mean = self._average_groups(wide.mean((1, 2)))  # [b, c]
        centred = wide - mean[:, None, None, :]
        variance = self._average_groups((centred**2).mean((1, 2)))  # [b, c]
        factor = scale.astype(wide.dtype)[None] * jax.lax.rsqrt(variance + self.eps)
        y = centred * factor[:, None, None, :] + bias.astype(wide.dtype)[None, None, None]
        return y.astype(self.dtype)

    def _average_groups(self, per_channel: Float[Array, "b c"]) -> Float[Array, "b c"]:
        b, c = per_channel.shape
        groups = per_channel.reshape(b, self.num_groups, c // self.num_groups)
        return jnp.repeat(groups.mean(-1), c // self.num_groups, axis=1)


class Dropout(nn.Module):
    """Dropout whose mask for an example depends only on that example's key."""

    rate: float

    def __call__(self, x: Features, keys: DropoutKeys) -> Features:
        """Drop features of x; without keys, return x itself."""
        if keys is None or self.rate == 0:
            return x
        layer = zlib.crc32("/".join(self.path).encode())  # each layer has its own mask

        def draw_mask(key: Key[Array, ""]) -> Array:
            key = jax.random.fold_in(key, layer)
            return jax.random.bernoulli(key, 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(draw_mask)(keys), x / (1 - self.rate), 0)


def attention(
    q: Float[Array, "b n c"], k: Float[Array, "b m c"], v: Float[Array, "b m c"]
) -> Float[Array, "b n c"]:
    """softmax(q k^T / sqrt(c)) v, the softmax in float32 or better (Vaswani et al. 2017, Eq. 1).

    The softmax's division comes after the product with v, where there is less to divide.
    """
    scores = contract("bnc,bmc->bnm", q, k) * q.shape[-1] ** -0.5
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = contract("bnm,bmc->bnc", weights.astype(v.dtype), v)
    return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def contract(spec: str, a: Array, b: Array) -> Array:
    """The einsum of a and b, summed and returned in float32 or better.

    The products of its gradient take bfloat16 operands if this one does; by JAX's own rule they
    would take float32.
    """
    return jnp.einsum(spec, a, b, preferred_element_type=statistics_dtype(a.dtype))


@contract.defjvp
def _differentiate(spec: str, operands: tuple[Array, Array], tangents: Any) -> tuple[Array, Array]:
    (a, b), (da, db), out = operands, tangents, contract(spec, *operands)
    return out, (jnp.einsum(spec, da, b) + jnp.einsum(spec, a, db)).astype(out.dtype)
