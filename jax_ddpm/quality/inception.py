"""The Inception network of 2015 that FID is defined by, with the weights' names of its ports.

Szegedy et al. 2015 (arXiv:1512.00567), as TensorFlow's graph `inception-2015-12-05` computes it. It
differs from later Inception networks: average pools leave the padding out, one pool of the last
block takes the maximum, images are resized as TensorFlow 1 does, and there are 1008 classes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jax_ddpm.errors import UserError

SIDE = 299
NUM_FEATURES = 2048
NUM_CLASSES = 1008
NORM_EPS = 1e-3
Features = Float[Array, "b _ _ _"]  # [b, h, w, c]; layers change all but the batch


class Extracted(NamedTuple):
    """What the network says about images: features for FID and KID, logits for the score."""

    features: Float[Array, "b 2048"]
    logits: Float[Array, "b 1008"]
    """Without the bias of the last layer, as the Inception Score of 2016 takes them."""


class ConvNorm(nn.Module):
    """A convolution, batch normalisation with stored statistics, and ReLU."""

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Features) -> Features:
        shape, dtype = (*self.kernel, x.shape[-1], self.features), x.dtype
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, dtype)
        scale = self.param("scale", nn.initializers.ones, (self.features,), dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), dtype)
        mean = self.param("mean", nn.initializers.zeros, (self.features,), dtype)
        var = self.param("var", nn.initializers.ones, (self.features,), dtype)
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        gain = scale / jnp.sqrt(var + NORM_EPS)
        shift = bias - mean * gain
        return nn.relu(x * gain[None, None, None] + shift[None, None, None])


Layer = tuple[str, int, tuple[int, int]]  # name, features, kernel
ONE, THREE, FIVE, WIDE, HIGH = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)
WIDE_3, HIGH_3 = (1, 3), (3, 1)


class Block(nn.Module):
    """Branches of convolutions side by side, and a pool; their results are concatenated.

    In a block with stride 2, the last layer of each branch and the pool halve the image. A fork is
    a list of layers at the end of a branch that all see the same input.
    """

    branches: tuple[tuple[Any, ...], ...]
    pool: str = "average"
    pool_features: int = 0
    stride: int = 1

    @nn.compact
    def __call__(self, x: Features) -> Features:
        outputs = [y for branch in self.branches for y in self.run_branch(x, branch)]
        return jnp.concatenate([*outputs, self.run_pool(x)], axis=-1)

    def run_branch(self, x: Features, branch: tuple[Any, ...]) -> list[Features]:
        """The outputs of one branch: one, or those of the fork at its end."""
        *first, last = branch
        for name, features, kernel in first:
            x = ConvNorm(features, kernel, name=name)(x)
        ends = last if isinstance(last[0], tuple) else (last,)
        padding = "SAME" if self.stride == 1 else "VALID"
        layers = [ConvNorm(n, kernel, self.stride, padding, name=name) for name, n, kernel in ends]
        return [layer(x) for layer in layers]

    def run_pool(self, x: Features) -> Features:
        """The pool of 3 x 3, then a convolution if the block keeps the size."""
        if self.stride == 2:
            return nn.max_pool(x, THREE, (2, 2))
        if self.pool == "max":
            x = nn.max_pool(x, THREE, padding="SAME")
        else:
            pooled = nn.avg_pool(x, THREE, padding="SAME", count_include_pad=False)
            x = pooled.astype(x.dtype)  # the counts are float64 where JAX has it
        return ConvNorm(self.pool_features, ONE, name="branch_pool")(x)


def block_a(name: str, pool_features: int) -> Block:
    """Make a block at 35 x 35."""
    double = (
        ("branch3x3dbl_1", 64, ONE),
        ("branch3x3dbl_2", 96, THREE),
        ("branch3x3dbl_3", 96, THREE),
    )
    branches = (
        (("branch1x1", 64, ONE),),
        (("branch5x5_1", 48, ONE), ("branch5x5_2", 64, FIVE)),
        double,
    )
    return Block(branches, pool_features=pool_features, name=name)


def block_b(name: str) -> Block:
    """Make the block that goes from 35 x 35 to 17 x 17."""
    double = (
        ("branch3x3dbl_1", 64, ONE),
        ("branch3x3dbl_2", 96, THREE),
        ("branch3x3dbl_3", 96, THREE),
    )
    return Block(((("branch3x3", 384, THREE),), double), stride=2, name=name)


def block_c(name: str, n: int) -> Block:
    """Make a block at 17 x 17, with `n` channels between the long, thin convolutions."""
    single = ("branch7x7_1", n, ONE), ("branch7x7_2", n, WIDE), ("branch7x7_3", 192, HIGH)
    double = (
        ("branch7x7dbl_1", n, ONE),
        ("branch7x7dbl_2", n, HIGH),
        ("branch7x7dbl_3", n, WIDE),
        ("branch7x7dbl_4", n, HIGH),
        ("branch7x7dbl_5", 192, WIDE),
    )
    return Block(((("branch1x1", 192, ONE),), single, double), pool_features=192, name=name)


def block_d(name: str) -> Block:
    """Make the block that goes from 17 x 17 to 8 x 8."""
    long = (
        ("branch7x7x3_1", 192, ONE),
        ("branch7x7x3_2", 192, WIDE),
        ("branch7x7x3_3", 192, HIGH),
        ("branch7x7x3_4", 192, THREE),
    )
    short = ("branch3x3_1", 192, ONE), ("branch3x3_2", 320, THREE)
    return Block((short, long), stride=2, name=name)


def block_e(name: str, pool: str) -> Block:
    """Make a block at 8 x 8."""
    fork = ("branch3x3_2a", 384, WIDE_3), ("branch3x3_2b", 384, HIGH_3)
    fork_double = ("branch3x3dbl_3a", 384, WIDE_3), ("branch3x3dbl_3b", 384, HIGH_3)
    branches = (
        (("branch1x1", 320, ONE),),
        (("branch3x3_1", 384, ONE), fork),
        (("branch3x3dbl_1", 448, ONE), ("branch3x3dbl_2", 384, THREE), fork_double),
    )
    return Block(branches, pool, 192, name=name)


class Inception(nn.Module):
    """The whole network, for images of 299 x 299 in [-1, 1]."""

    @nn.compact
    def __call__(self, x: Features) -> Extracted:
        x = ConvNorm(32, THREE, 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = ConvNorm(32, THREE, 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = ConvNorm(64, THREE, name="Conv2d_2b_3x3")(x)
        x = nn.max_pool(x, THREE, (2, 2))  # 73 x 73
        x = ConvNorm(80, ONE, name="Conv2d_3b_1x1")(x)
        x = ConvNorm(192, THREE, 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = nn.max_pool(x, THREE, (2, 2))  # 35 x 35
        for name, pool_features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = block_a(name, pool_features)(x)
        x = block_b("Mixed_6a")(x)  # 17 x 17
        for name, n in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = block_c(name, n)(x)
        x = block_d("Mixed_7a")(x)  # 8 x 8
        x = block_e("Mixed_7b", "average")(x)
        x = block_e("Mixed_7c", "max")(x)
        features = x.mean((1, 2))
        shape = (NUM_FEATURES, NUM_CLASSES)
        kernel = self.param("fc", nn.initializers.lecun_normal(), shape, x.dtype)
        return Extracted(features, jnp.dot(features, kernel, precision=jax.lax.Precision.HIGHEST))


def resize_as_tensorflow_1(images: Features, side: int = SIDE) -> Features:
    """Resize to `side` x `side`, bilinear, with TensorFlow 1's corners: pixel i is at i * scale.

    The scale is rounded to float32 in every precision, as TensorFlow does.
    """
    down, right = (_interpolation(size, side, images.dtype) for size in images.shape[1:3])
    images = _blend(images, 2, *right)
    return _blend(images, 1, *down)


def _interpolation(size: int, side: int, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixel before and after each new pixel, and the share of the latter."""
    where = np.arange(side, dtype=dtype) * np.float32(size / side).astype(dtype)
    low = where.astype(np.int32)
    return low, np.minimum(low + 1, size - 1), where - low.astype(dtype)


def _blend(x: Features, axis: int, low: Any, high: Any, share: Any) -> Features:
    first, second = (jnp.take(x, jnp.asarray(i), axis) for i in (low, high))
    weight = jnp.expand_dims(jnp.asarray(share), tuple(i for i in range(4) if i != axis))
    return first + (second - first) * weight


def extract(params: Any, images: UInt8[Array, "b h w c"]) -> Extracted:
    """Compute the features and logits of images of any size, grey or in colour.

    They are computed in the dtype of `params`.
    """
    dtype = jax.tree.leaves(params)[0].dtype
    colours = jnp.broadcast_to(images, (*images.shape[:3], 3)) if images.shape[-1] == 1 else images
    resized = resize_as_tensorflow_1(colours.astype(dtype))
    return Inception().apply({"params": params}, (resized - 128) / 128)  # type: ignore[return-value]


RENAMED = {
    "conv.weight": "kernel",
    "bn.weight": "scale",
    "bn.bias": "bias",
    "bn.running_mean": "mean",
    "bn.running_var": "var",
}
UNUSED = ("fc.bias", "num_batches_tracked")


def convert_inception(state_dict: Mapping[str, Any], dtype: Any = np.float32) -> Any:
    """Convert the state dict that pytorch-fid and torch-fidelity load to parameters.

    Raises UserError for any other state dict.
    """
    wanted = inception_shapes()
    params: dict[str, Any] = {}
    for name, value in state_dict.items():
        if name.endswith(UNUSED):
            continue
        path = ["fc"] if name == "fc.weight" else _rename(name)
        array = np.asarray(value)
        axes = (2, 3, 1, 0) if array.ndim == 4 else tuple(reversed(range(array.ndim)))
        inner = params
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = array.transpose(axes).astype(dtype)
    if jax.tree.map(np.shape, params) != wanted:
        raise UserError(
            "these are not the weights of the Inception network of FID: expected the file "
            "pt_inception-2015-12-05-6726825d.pth, which pytorch-fid and torch-fidelity download"
        )
    return params


def _rename(name: str) -> list[str]:
    for theirs, ours in RENAMED.items():
        if name.endswith(f".{theirs}"):
            return [*name.removesuffix(f".{theirs}").split("."), ours]
    return name.split(".")


def inception_shapes() -> Any:
    """The shape of each parameter, as a tree."""
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)
    shapes = jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]
    return jax.tree.map(lambda leaf: leaf.shape, shapes)
