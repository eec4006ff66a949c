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

SMALL = {"model_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "dropout": 0.0}
TINY = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 0, "dropout": 0.0}
T = jnp.array([3, 700])


def draw_images(*shape):
    return jax.random.normal(jax.random.key(0), shape, jnp.float32)


def build_network(config, dtype=jnp.float32):
    return make_network(config, config.example_shape, dtype=dtype)


def trace_output_shape(config, size, dtype=jnp.float32, **kwargs):
    network = build_network(config, dtype)
    x_t = jax.ShapeDtypeStruct((2, *size), dtype)
    return jax.eval_shape(network.apply_fn, parameter_shapes(config), x_t, T, **kwargs)


PUBLISHED = {  # parameters, counted in OpenAI's code
    52_546_438: ImprovedDiffusionConfig(
        model_channels=128,
        channel_mult=(1, 2, 2, 2),
        num_res_blocks=3,
        num_heads=4,
        attention_resolutions=(2, 4),
        use_scale_shift_norm=True,
        out_channels=6,
    ),
    295_904_454: GuidedDiffusionConfig(
        model_channels=192,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        num_head_channels=64,
        attention_resolutions=(2, 4, 8),
        use_scale_shift_norm=True,
        resblock_updown=True,
        use_new_attention_order=True,
        num_classes=1000,
        out_channels=6,
    ),
    558_997_638: GuidedDiffusionConfig(
        model_channels=256,
        channel_mult=(0.5, 1, 1, 2, 2, 4, 4),
        num_head_channels=64,
        attention_resolutions=(16, 32, 64),
        use_scale_shift_norm=True,
        resblock_updown=True,
        num_classes=1000,
        out_channels=6,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("expected", PUBLISHED)
def test_published_networks_have_the_published_number_of_parameters(expected):
    config = PUBLISHED[expected]
    config.check()
    assert sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(config))) == expected


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_the_output_has_the_expected_shape_and_dtype(dtype):
    flags = {"out_channels": 6, "resblock_updown": True, "use_scale_shift_norm": True}
    config = GuidedDiffusionConfig(**SMALL, **flags)
    out = trace_output_shape(config, (4, 6, 3), dtype)
    expected = jnp.float64 if dtype == jnp.float64 else jnp.float32
    assert (out.shape, out.dtype) == ((2, 4, 6, 6), expected)


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


def test_heads_are_counted_by_number_or_by_channels():
    config = GuidedDiffusionConfig(num_heads=2, num_heads_upsample=4)
    assert [config.count_heads(64, up=up) for up in (False, True)] == [2, 4]
    config = GuidedDiffusionConfig(num_heads=2, num_heads_upsample=4, num_head_channels=16)
    assert [config.count_heads(64, up=up) for up in (False, True)] == [4, 4]


@pytest.mark.slow
def test_a_new_network_predicts_zero():
    network, x_t = build_network(ImprovedDiffusionConfig(**TINY)), draw_images(2, 4, 4, 3)
    out = jax.jit(lambda key: network.apply_fn(network.init(key), x_t, T))(jax.random.key(0))
    np.testing.assert_array_equal(out, 0)
