import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.models import (
    GuidedDiffusionConfig,
    ImprovedDiffusionConfig,
    make_network,
    parameter_shapes,
)

SMALL = {"model_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "dropout": 0.5}
TINY = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 0, "dropout": 0.5}
T = jnp.array([3, 700])
KEYS = jax.random.split(jax.random.key(9), 2)


def images(*shape):
    return jax.random.normal(jax.random.key(0), shape, jnp.float32)


def network_of(config, dtype=jnp.float32):
    return make_network(config, config.example_shape, dtype=dtype)


def random_params(config):
    """Far from zero, unlike at initialisation."""
    leaves, tree = jax.tree.flatten(parameter_shapes(config))
    numbers = np.random.default_rng(0)
    params = [jnp.asarray(numbers.normal(0, 0.1, leaf.shape), jnp.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, params)


def output_shape(config, size, dtype=jnp.float32, **kwargs):
    network = network_of(config, dtype)
    x_t = jax.ShapeDtypeStruct((2, *size), dtype)
    return jax.eval_shape(network.apply_fn, parameter_shapes(config), x_t, T, **kwargs)


PUBLISHED = {  # counted in their code
    52_546_438: ImprovedDiffusionConfig(
        model_channels=128, channel_mult=(1, 2, 2, 2), num_res_blocks=3, num_heads=4,
        attention_resolutions=(2, 4), use_scale_shift_norm=True, out_channels=6,
    ),
    295_904_454: GuidedDiffusionConfig(
        model_channels=192, channel_mult=(1, 2, 3, 4), num_res_blocks=3, num_head_channels=64,
        attention_resolutions=(2, 4, 8), use_scale_shift_norm=True, resblock_updown=True,
        use_new_attention_order=True, num_classes=1000, out_channels=6,
    ),
    558_997_638: GuidedDiffusionConfig(
        model_channels=256, channel_mult=(0.5, 1, 1, 2, 2, 4, 4), num_head_channels=64,
        attention_resolutions=(16, 32, 64), use_scale_shift_norm=True, resblock_updown=True,
        num_classes=1000, out_channels=6,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("expected", PUBLISHED)
def test_the_published_networks_have_as_many_parameters_as_theirs(expected):
    config = PUBLISHED[expected]
    config.check()
    assert sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(config))) == expected


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_shape_and_dtype_of_the_output(dtype):
    flags = {"out_channels": 6, "resblock_updown": True, "use_scale_shift_norm": True}
    config = GuidedDiffusionConfig(**SMALL, **flags)
    out = output_shape(config, (4, 6, 3), dtype)
    expected = jnp.float64 if dtype == jnp.float64 else jnp.float32
    assert (out.shape, out.dtype) == ((2, 4, 6, 6), expected)


def test_sides_that_cannot_be_halved_are_named():
    config = ImprovedDiffusionConfig(**SMALL)
    with pytest.raises(ValueError, match="images are 4x7, but a network of 2 levels takes sides"):
        output_shape(config, (4, 7, 3))


def test_labels_are_for_networks_with_classes():
    label = jnp.array([0, 4])
    classes = GuidedDiffusionConfig(**SMALL, num_classes=5)
    assert output_shape(classes, (4, 4, 3), label=label).shape == (2, 4, 4, 3)
    with pytest.raises(TypeError, match="5 classes, but no label"):
        output_shape(classes, (4, 4, 3))
    with pytest.raises(TypeError, match="no classes, but a label"):
        output_shape(GuidedDiffusionConfig(**SMALL), (4, 4, 3), label=label)


MISTAKES = [
    (GuidedDiffusionConfig(model_channels=48), "channel-mult is .* here .48, 96, 192, 384., are"),
    (GuidedDiffusionConfig(channel_mult=()), "channel-mult"),
    (GuidedDiffusionConfig(model_channels=0), "model-channels is 0"),
    (GuidedDiffusionConfig(num_res_blocks=-1), "num-res-blocks is -1"),
    (GuidedDiffusionConfig(dropout=1.0), "dropout is 1.0"),
    (GuidedDiffusionConfig(num_classes=0), "num-classes is 0"),
    (GuidedDiffusionConfig(num_heads=0), "num-heads is 0"),
    (GuidedDiffusionConfig(num_heads_upsample=0), "num-heads-upsample is 0"),
    (GuidedDiffusionConfig(num_head_channels=0), "num-head-channels is 0"),
    (GuidedDiffusionConfig(num_head_channels=96), "num-head-channels is 96, .* of the 512"),
    (ImprovedDiffusionConfig(channel_mult=(2, 4)), "the first of them 1"),
    (ImprovedDiffusionConfig(channel_mult=(1, 1.5)), "whole numbers"),  # type: ignore[arg-type]
    (ImprovedDiffusionConfig(conv_resample=False), "conv-resample is False"),
]


@pytest.mark.parametrize(("config", "sentence"), MISTAKES, ids=[s for _, s in MISTAKES])
def test_settings_that_cannot_work_are_named(config, sentence):
    with pytest.raises(ValueError, match=f"--model.*{sentence}"):
        config.check()


@pytest.mark.parametrize("architecture", [GuidedDiffusionConfig, ImprovedDiffusionConfig])
def test_the_defaults_work(architecture):
    architecture().check()


def test_heads():
    config = GuidedDiffusionConfig(num_heads=2, num_heads_upsample=4)
    assert [config.heads(64, path) for path in ("input", "mid", "output")] == [2, 2, 4]
    config = GuidedDiffusionConfig(num_heads=2, num_heads_upsample=4, num_head_channels=16)
    assert [config.heads(64, path) for path in ("input", "mid", "output")] == [4, 4, 4]


@pytest.mark.slow
def test_a_new_network_predicts_zero():
    network, x_t = network_of(ImprovedDiffusionConfig(**TINY)), images(2, 4, 4, 3)
    out = jax.jit(lambda key: network.apply_fn(network.init(key), x_t, T))(jax.random.key(0))
    np.testing.assert_array_equal(out, 0)


@pytest.mark.slow
def test_dropout_needs_training_and_keys_and_is_each_examples_own():
    config = ImprovedDiffusionConfig(**TINY)
    apply_fn = jax.jit(network_of(config).apply_fn, static_argnames="train")
    params, x_t = random_params(config), images(2, 4, 4, 3)
    out = apply_fn(params, x_t, T)
    for kwargs in ({"train": True}, {"dropout_keys": KEYS}):
        np.testing.assert_allclose(apply_fn(params, x_t, T, **kwargs), out, rtol=0, atol=1e-5)
    dropped = apply_fn(params, x_t, T, train=True, dropout_keys=KEYS)
    assert not jnp.allclose(dropped, out, atol=1e-2)
    swapped = apply_fn(params, x_t[::-1], T[::-1], train=True, dropout_keys=KEYS[::-1])
    # Measured: 0; a wrong mask changes outputs by about 0.1.
    np.testing.assert_allclose(swapped[::-1], dropped, rtol=0, atol=1e-5)
