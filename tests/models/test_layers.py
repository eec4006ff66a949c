from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.models.layers import (
    DoublingConv,
    Dropout,
    GroupNorm,
    attention,
    conv,
    conv_transpose,
    dense,
    downsample_mean,
    timestep_embedding,
    upsample_nearest,
)
from jax_ddpm.models.unet import SelfAttention


def draw_normal(seed, *shape, dtype=jnp.float64):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


@pytest.mark.parametrize("dim", [4, 5, 128])
def test_timestep_embedding_is_sines_then_cosines_from_frequency_1_to_1e_4(dim):
    t, half = jnp.array([0, 1, 999]), dim // 2
    embedding = np.asarray(timestep_embedding(t, dim, jnp.float64))
    assert embedding.shape == (3, dim)
    for column, frequency in [(0, 1.0), (half - 1, 1e-4)]:
        # Measured: 1e-16.
        np.testing.assert_allclose(embedding[:, column], np.sin(t * frequency), atol=1e-12)
        np.testing.assert_allclose(embedding[:, half + column], np.cos(t * frequency), atol=1e-12)
    np.testing.assert_array_equal(embedding[:, 2 * half :], 0)
    np.testing.assert_array_equal(embedding[0], [0] * half + [1] * half + [0] * (dim % 2))


def test_frequencies_of_the_embedding_fall_geometrically():
    angles = np.arcsin(timestep_embedding(jnp.array([1]), 16, jnp.float64)[0, :8])
    np.testing.assert_allclose(
        angles[1:] / angles[:-1], 1e-4 ** (1 / 7), rtol=1e-10
    )  # measured: 1e-15


def test_group_norm_equals_flax():
    x = 3 + 10 * draw_normal(0, 2, 5, 4, 8)
    params = {"params": {"scale": draw_normal(1, 8), "bias": draw_normal(2, 8)}}
    ours = jax.jit(GroupNorm(num_groups=2, dtype=jnp.float64).apply)(params, x)
    flax = nn.GroupNorm(num_groups=2, epsilon=1e-6, use_fast_variance=False, dtype=jnp.float64)
    theirs = jax.jit(flax.apply)(params, x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)  # measured: 7e-16


def test_group_norm_keeps_its_digits_far_from_zero():
    x = draw_normal(0, 1, 8, 8, 4, dtype=jnp.float32)
    norm = jax.jit(GroupNorm(num_groups=2).apply)
    params = {"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}
    # At 1000, float32 keeps 4 digits of a deviation of 1; the fast variance keeps none.
    # Measured: 1e-4.
    np.testing.assert_allclose(norm(params, x + 1000), norm(params, x), atol=5e-4)


def test_attention_is_the_textbook_formula():
    q, k, v = draw_normal(0, 2, 5, 8), draw_normal(1, 2, 7, 8), draw_normal(2, 2, 7, 8)
    weights = np.exp(q @ k.transpose(0, 2, 1) / 8**0.5)
    expected = weights @ v / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(jax.jit(attention)(q, k, v), expected, rtol=1e-10)  # measured: 3e-15


def test_attention_with_huge_scores_picks_the_largest():
    q = jnp.full((1, 1, 4), 1e4, jnp.bfloat16)
    k = jnp.array([[[1.0] * 4, [-1.0] * 4, [0.5] * 4]], jnp.bfloat16) * 1e4
    v = draw_normal(0, 1, 3, 4, dtype=jnp.bfloat16)

    @jax.jit
    def attend(q):
        out, pull_back = jax.vjp(lambda q: attention(q, k, v), q)
        return out, pull_back(jnp.ones_like(out))

    out, gradient = attend(q)
    np.testing.assert_array_equal(out, v[:, :1])
    assert jnp.all(jnp.isfinite(gradient[0]))


def test_attention_sees_all_pixels_and_starts_as_the_identity():
    x = draw_normal(0, 1, 3, 4, 4)
    layer = SelfAttention(num_groups=2, dtype=jnp.float64)

    @jax.jit
    def begin(key, x):
        params = layer.init(key, x)
        first_pixel = lambda x: layer.apply(params, x)[0, 0, 0, 0]  # noqa: E731
        return layer.apply(params, x), jax.grad(first_pixel)(x)

    out, gradient = begin(jax.random.key(0), x)
    # The last layer's weights are of order 1e-5 (variance scaled by 1e-10). Measured: 3e-5.
    np.testing.assert_allclose(out, x, rtol=0, atol=1e-4)
    assert jnp.all(gradient != 0)


def test_upsampling_repeats_pixels():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    np.testing.assert_array_equal(upsample_nearest(x)[0, ..., 0], expected)


class Layer(nn.Module):
    """`layer(x, *args)` as a module."""

    layer: Any
    args: tuple

    @nn.compact
    def __call__(self, x):
        return self.layer(x, *self.args[:-1], "it", jnp.float32, **self.args[-1])


def test_a_convolution_pads_on_the_requested_sides():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(1)
    params = {"it": {"kernel": jnp.arange(9.0).reshape(3, 3, 1, 1), "bias": jnp.zeros(1)}}
    below = Layer(conv, (1, 3, {"stride": 2, "padding": (0, 1)})).apply({"params": params}, x)
    np.testing.assert_array_equal(
        below[0, ..., 0], [[4, 0], [0, 0]]
    )  # the kernel's centre meets the pixel
    around = Layer(conv, (1, 3, {"stride": 2})).apply({"params": params}, x)
    np.testing.assert_array_equal(around[0, ..., 0], [[8, 6], [2, 0]])


@pytest.mark.parametrize(
    ("layer", "args", "fan_in"),
    [
        (conv, (64, 3, {}), 9 * 32),
        (conv, (64, 3, {"groups": 32}), 9),
        (conv_transpose, (64, 4, {"padding": 1}), 16 * 64),
        (dense, (64, {}), 32),
    ],
)
def test_layers_start_as_in_pytorch_by_default(layer, args, fan_in):
    """Kernels and biases are uniform within 1/sqrt(fan_in)."""
    module = Layer(layer, args)
    params = module.init(jax.random.key(0), jnp.zeros((1, 2, 2, 32)))["params"]["it"]
    for array in (params["kernel"], params["bias"]):
        assert 0.9 * fan_in**-0.5 < jnp.abs(array).max() <= fan_in**-0.5


def test_averaging_drops_an_odd_last_row():
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    np.testing.assert_array_equal(downsample_mean(x)[0, ..., 0], [[2.5, 4.5]])


def drop(x, keys, rate=0.25):
    return jax.jit(Dropout(rate).apply)({}, x, keys)


def test_dropout_does_nothing_without_keys_or_rate():
    x, keys = draw_normal(0, 2, 3, 3, 2), jax.random.split(jax.random.key(0), 2)
    np.testing.assert_array_equal(drop(x, None), x)
    np.testing.assert_array_equal(drop(x, keys, rate=0.0), x)


def test_dropout_drops_at_its_rate_and_keeps_the_mean():
    x = jnp.ones((4, 50, 50, 4))
    y = np.asarray(drop(x, jax.random.split(jax.random.key(0), 4)))
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-15)
    # Five standard errors of 40,000 draws. Measured: 0.2 of them
    assert abs((y == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / x.size) ** 0.5


def test_the_mask_of_an_example_depends_on_its_key_alone():
    keys, x = jax.random.split(jax.random.key(0), 4), jnp.ones((4, 5, 5, 2))
    together, picked = drop(x, keys), np.array([3, 1])
    np.testing.assert_array_equal(drop(x[:2], keys[picked]), together[picked])
    assert not jnp.array_equal(together[0], together[1])


def test_every_layer_has_its_own_mask():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, keys):
            return [Dropout(0.5, name=name)(x, keys) for name in ("one", "other")]

    one, other = Two().apply({}, jnp.ones((1, 8, 8, 1)), jax.random.split(jax.random.key(0), 1))
    assert not jnp.array_equal(one, other)


@pytest.mark.slow
def test_a_doubling_convolution_is_flax_own_transposed_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4), jnp.float64)
    layer = DoublingConv(6, jnp.float64)
    params = layer.init(jax.random.key(1), x)
    bound = (16 * 6) ** -0.5  # PyTorch's default start
    assert 0.9 * bound < jnp.abs(params["params"]["kernel"]).max() <= bound
    pad = ((2, 2), (2, 2))  # what PyTorch's padding of 1 leaves of a full one
    other = nn.ConvTranspose(6, (4, 4), (2, 2), pad, transpose_kernel=True, dtype=jnp.float64)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, jax.eval_shape(other.init, jax.random.key(1), x)
    )
    weight = jax.random.normal(jax.random.key(2), (2, 6, 10, 6), jnp.float64)
    ours, theirs = (
        jax.value_and_grad(lambda p, x, m=m: (m.apply(p, x) * weight).sum(), (0, 1))(params, x)
        for m in (layer, other)
    )
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(
            one, two, rtol=1e-10, atol=1e-12
        )  # measured: 3e-16 of the largest
