"""A network is a pair of functions; wrong arguments get one sentence."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.models import (
    ARCHITECTURES,
    AnnotatedConfig,
    AnnotatedWSConfig,
    GuidedDiffusionConfig,
    LucidrainsConfig,
    PulferConfig,
    UNet2DConfig,
    UNetConfig,
    make_network,
    parameter_shapes,
    summarize,
)

PLAIN = UNetConfig(
    channels=4, channel_mult=(1,), num_res_blocks=1, attn_levels=(), num_groups=2, dropout=0.0
)
CLASSES = UNetConfig(
    channels=4, channel_mult=(1,), num_res_blocks=1, attn_levels=(), num_groups=2, num_classes=3
)
SELF = LucidrainsConfig(dim=4, dim_mults=(1,), attn_heads=1, attn_dim_head=2, self_condition=True)
X = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
T = jax.ShapeDtypeStruct((2,), jnp.int32)
LABEL = jax.ShapeDtypeStruct((2,), jnp.int32)
KEYS = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))


def trace_output(config, x_t=X, t=T, *, train=False, **arguments):
    """Trace the output's shape and dtype, without computing anything."""
    network = make_network(config, (8, 8, 1))
    params = jax.eval_shape(network.init, jax.random.key(0))

    def apply(params, x_t, t, arguments):
        return network.apply_fn(params, x_t, t, train=train, **arguments)

    return jax.eval_shape(apply, params, x_t, t, arguments)


def make_struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        (PLAIN, {"train": True}),
        (CLASSES, {"label": LABEL}),
        (CLASSES, {"label": LABEL, "train": True, "dropout_keys": KEYS}),
        (SELF, {}),
        (SELF, {"x_self_cond": X}),
        (PLAIN, {"label": None, "x_self_cond": None, "dropout_keys": None}),
        (PLAIN, {"x_t": make_struct(2, 5, 7, 1)}),
        (PLAIN, {"t": make_struct(2, dtype=jnp.float32)}),
    ],
)
def test_a_network_takes_all_of_its_arguments(config, arguments):
    out = trace_output(config, **arguments)
    assert out == make_struct(*arguments.get("x_t", X).shape)


MISTAKES = {
    "3 classes, but no label is given": (CLASSES, {}),
    "no classes, but a label is given": (PLAIN, {"label": LABEL}),
    "not self-conditioned, but x_self_cond": (PLAIN, {"x_self_cond": X}),
    r"x_self_cond has shape \(2, 8, 8, 3\), but x_t has \(2, 8, 8, 1\)": (
        SELF,
        {"x_self_cond": make_struct(2, 8, 8, 3)},
    ),
    "train=True needs dropout_keys, .* dropout 0.1": (CLASSES, {"label": LABEL, "train": True}),
    "no argument 'lable': did you mean 'label'": (PLAIN, {"lable": LABEL}),
    "no argument 'prediction_type'": (PLAIN, {"prediction_type": LABEL}),
    r"shape \(2, 1, 8, 8\) have 8 channels, .* takes 1: .* transpose NCHW": (
        PLAIN,
        {"x_t": make_struct(2, 1, 8, 8)},
    ),
    "have 3 channels, but this network takes 1": (PLAIN, {"x_t": make_struct(2, 8, 8, 3)}),
    r"x_t has shape \(8, 8, 1\)": (PLAIN, {"x_t": make_struct(8, 8, 1)}),
    "x_t is uint8, .*from_uint8": (PLAIN, {"x_t": make_struct(2, 8, 8, 1, dtype=jnp.uint8)}),
    r"t has shape \(\), but 2 images need shape \(2,\)": (
        PLAIN,
        {"t": make_struct(dtype=jnp.int32)},
    ),
    r"t has shape \(1,\)": (PLAIN, {"t": make_struct(1, dtype=jnp.int32)}),
}


@pytest.mark.parametrize("sentence", MISTAKES)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_arguments_get_one_sentence(sentence):
    config, arguments = MISTAKES[sentence]
    with pytest.raises(UserError, match=sentence):
        trace_output(config, **arguments)


HALVES = {"dim": 4, "dim_mults": (1, 2, 4)}
SIZES = [
    (AnnotatedConfig(**HALVES), (6, 4, 3), "6x4, .* multiples of 4"),
    (AnnotatedConfig(**HALVES), (4, 3, 3), "4x3, .* multiples of 4"),
    (AnnotatedConfig(**HALVES), (9, 4, 3), None),  # one more than a multiple works, as published
    (AnnotatedWSConfig(**HALVES), (9, 4, 3), "9x4, .* multiples of 4"),
    (LucidrainsConfig(**HALVES), (8, 6, 3), "8x6, .* multiples of 4"),
    (GuidedDiffusionConfig(model_channels=32), (8, 12, 3), "8x12, .* multiples of 8"),
    (UNet2DConfig(), (16, 12, 3), "16x12, .* multiples of 8"),
    (PulferConfig(), (32, 32, 1), "32x32, but this network needs 28x28"),
    (PulferConfig(), (28, 28, 3), "have 3 channels, but this network takes 1"),
    (UNetConfig(in_channels=3), (3, 32, 32), "takes 3: .* NCHW"),
    (UNetConfig(), (32, 32), "image_shape is .*height, width, channels"),
    (UNetConfig(), (7, 5, 4), None),
]


@pytest.mark.parametrize(("config", "size", "sentence"), SIZES)
@pytest.mark.usefixtures("unchecked_types")
def test_image_sizes_are_checked_when_a_network_is_made(config, size, sentence):
    if sentence is None:
        make_network(config, size)
    else:
        with pytest.raises(UserError, match=sentence):
            make_network(config, size)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (UNetConfig(compute_dtype="float16"), "compute-dtype is 'float16', .* bfloat16"),
        (AnnotatedConfig(norm="grup"), "norm is 'grup', .* did you mean 'group'"),
        (AnnotatedWSConfig(weight_standardization="div"), "weight-standardization is 'div'"),
        (UNet2DConfig(time_embedding_type="sine"), "time-embedding-type is 'sine', .* fourier"),
        (UNet2DConfig(act_fn="sillu"), "act-fn is 'sillu', .* did you mean 'silu'"),
        (UNet2DConfig(up_block_types=("DownBlock2D",) * 4), "up-block-types is 'DownBlock2D'"),
        (UNet2DConfig(class_embed_type="timesteps"), "did you mean 'timestep'"),
        (UNet2DConfig(time_embedding_type=None), "time-embedding-type is None"),
    ],
)
def test_names_in_a_configuration_are_checked(config, sentence):
    with pytest.raises(UserError, match=f"--model.*{sentence}"):
        make_network(config, (32, 32, 3))


@pytest.mark.slow
def test_the_defaults_of_every_architecture_can_be_built():
    for architecture in ARCHITECTURES.values():
        if architecture is not ARCHITECTURES["custom"]:
            assert jax.tree.leaves(parameter_shapes(architecture()))


class Tiny(nn.Module):
    """A user's own Linen module."""

    @nn.compact
    def __call__(self, x_t, t, scale=1.0):
        return nn.Dense(x_t.shape[-1])(x_t) * scale


def test_any_linen_module_is_a_network():
    network = make_network(Tiny(), (8, 8, 1))
    params, x_t, t = network.init(jax.random.key(0)), np.ones((2, 8, 8, 1), np.float32), np.zeros(2)
    assert network.apply_fn(params, x_t, t, scale=2.0, label=None).shape == x_t.shape
    with pytest.raises(UserError, match="no argument 'label'"):
        network.apply_fn(params, x_t, t, label=np.zeros(2))


@pytest.mark.slow
@pytest.mark.guard
def test_the_summary_lists_every_part_and_counts_every_parameter():
    shapes = jax.eval_shape(make_network(CLASSES, (8, 8, 1)).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    table = summarize(CLASSES, (8, 8, 1))
    assert not [name for name in shapes if f" {name} " not in table]
    assert "float32[1,8,8,4]" in table and f"Total Parameters: {count:,} " in table
    assert len(summarize(CLASSES, (8, 8, 1), depth=2)) > len(table)
