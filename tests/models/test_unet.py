import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.config.presets import PRESETS
from jax_ddpm.models import UNet, UNetConfig, make_network
from jax_ddpm.models.unet import ResnetBlock, pad_to_multiple

SMALL = {
    "channels": 4,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_levels": (1,),
    "num_groups": 2,
}
T = jnp.array([3, 700])
# The network is tiny: compiling it takes most of the time, so compile without optimising.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
KEYS = jax.random.split(jax.random.key(9), 2)


def draw_images(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


def trace_shapes(network):
    return jax.eval_shape(network.init, jax.random.key(0))


@pytest.fixture(scope="module")
def small():
    """A small network whose parameters are all far from zero, unlike at initialisation."""
    network = make_network(UNetConfig(dropout=0.5, **SMALL), (8, 8, 1))
    numbers = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(numbers.normal(0, 0.3, leaf.shape), jnp.float32),
        trace_shapes(network),
    )
    apply_fn = jax.jit(network.apply_fn, static_argnames="train", compiler_options=QUICK)
    return apply_fn, params


@pytest.mark.slow
def test_the_preset_for_256x256_images_has_the_network_of_ho_et_al():
    """parity_tests/test_unet.py counts the CIFAR-10 network."""
    shapes = trace_shapes(make_network(PRESETS["ddpm-256"].model, (256, 256, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 113_673_219


def test_the_linen_module_is_built_from_a_configuration():
    module = UNet(UNetConfig(**SMALL), out_channels=1)
    assert UNetConfig(**SMALL).module(1, jnp.float32) == module
    assert UNet() == UNetConfig().module(3, jnp.float32)
    assert trace_shapes(make_network(module, (8, 8, 1))) == trace_shapes(
        make_network(UNetConfig(**SMALL), (8, 8, 1))
    )


@pytest.mark.parametrize(
    ("size", "channel_mult"),
    [((7, 5, 3), (1, 2)), ((1, 1, 1), (1, 1, 1, 1)), ((28, 28, 1), (1, 1, 1, 1))],
)
def test_the_output_has_the_shape_of_the_images(size, channel_mult):
    """Whatever their sides, and in float64 on request."""
    config = UNetConfig(**(SMALL | {"channel_mult": channel_mult}))
    network = make_network(config, size, dtype=jnp.float64)
    x_t, t = jax.ShapeDtypeStruct((2, *size), jnp.float64), jax.ShapeDtypeStruct((2,), jnp.int32)
    out = jax.eval_shape(network.apply_fn, trace_shapes(network), x_t, t)
    assert (out.shape, out.dtype) == ((2, *size), jnp.float64)


@pytest.mark.parametrize(("size", "multiple"), [((7, 5), 4), ((8, 8), 8), ((1, 3), 4)])
def test_padding_is_zero_and_can_be_cropped_again(size, multiple):
    x = draw_images(1, *size, 2)
    padded, crop = pad_to_multiple(x, multiple)
    assert padded.shape[1] % multiple == padded.shape[2] % multiple == 0
    assert padded.shape[1] - size[0] < multiple and padded.shape[2] - size[1] < multiple
    np.testing.assert_array_equal(crop(padded), x)
    np.testing.assert_allclose(padded.sum(), x.sum(), rtol=1e-4)  # measured: 1e-6


def test_layers_start_as_in_the_code_of_ho_et_al():
    """Uniform, scaled by the mean of fan-in and fan-out; tiny where the output starts at zero."""
    block = ResnetBlock(8, 0.0, 2)
    x, temb = jnp.zeros((1, 2, 2, 4)), jnp.zeros((1, 16))
    params = jax.jit(block.init)(jax.random.key(0), x, temb)["params"]
    bound = (3 / (9 * (4 + 8) / 2)) ** 0.5
    assert 0.9 * bound < jnp.abs(params["conv1"]["kernel"]).max() <= bound
    assert 0 < jnp.abs(params["conv2"]["kernel"]).max() < 1e-4  # measured: 2e-6
    assert not params["conv1"]["bias"].any()


@pytest.mark.slow
def test_examples_do_not_depend_on_each_other(small):
    """Neither their images and timesteps nor, in training, their dropout."""
    apply_fn, params = small
    x_t, keys = draw_images(2, 8, 8, 1), KEYS
    out = apply_fn(params, x_t, T, dropout_keys=keys)
    for x_other, t_other, keys_other in (
        (x_t.at[0].add(0.1), T, keys),
        (x_t, T.at[0].set(4), keys),
        (x_t, T, keys[::-1]),
    ):
        other = apply_fn(params, x_other, t_other, dropout_keys=keys_other)
        np.testing.assert_array_equal(out[1], other[1])
        differs = jnp.abs(out[0] - other[0]).min() > 0
        assert differs == (keys_other is keys)
    dropped = apply_fn(params, x_t, T, train=True, dropout_keys=keys)
    assert not jnp.allclose(dropped, out, atol=1e-2)
    swapped = apply_fn(params, x_t[::-1], T[::-1], train=True, dropout_keys=keys[::-1])
    # Measured: 0; a wrong mask changes outputs by about 1.
    np.testing.assert_allclose(swapped[::-1], dropped, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_gradients_are_finite_and_reach_every_parameter(small):
    apply_fn, params = small
    x_t = draw_images(2, 8, 8, 1)
    plain = apply_fn.__wrapped__  # compiled inside another program, it may have no options
    grads = jax.jit(jax.grad(lambda p: (plain(p, x_t, T) ** 2).mean()))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.all(jnp.isfinite(grad)), path
        # The keys' bias adds the same to every score of a row, which softmax cancels.
        keys_bias = jax.tree_util.keystr(path).endswith("['k']['bias']")
        assert keys_bias or jnp.all(jnp.abs(grad).max() > 1e-6), path
