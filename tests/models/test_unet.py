import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.config.presets import PRESETS
from jax_ddpm.models import UNet, UNetConfig, make_network
from jax_ddpm.models.unet import pad_to_multiple

SMALL = {"channels": 4, "channel_mult": (1, 2), "num_res_blocks": 1, "num_groups": 2}
T = jnp.array([3, 700])
KEYS = jax.random.split(jax.random.key(9), 2)


def images(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


@pytest.fixture(scope="module")
def small():
    """A small network whose parameters are all far from zero, unlike at initialisation."""
    network = make_network(UNetConfig(dropout=0.5, **SMALL), (8, 8, 1))
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    numbers = np.random.default_rng(0)
    params = [jnp.asarray(numbers.normal(0, 0.3, leaf.shape), jnp.float32) for leaf in leaves]
    apply_fn = jax.jit(network.apply_fn, static_argnames="train")
    return apply_fn, jax.tree.unflatten(tree, params)


def num_parameters(network, size):
    shapes = jax.eval_shape(make_network(network, size).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("preset", "size", "expected"),
    [("ddpm-cifar10", (32, 32, 3), 35_746_307), ("ddpm-256", (256, 256, 3), 113_673_219)],
)
def test_presets_have_as_many_parameters_as_the_networks_of_ho_et_al(preset, size, expected):
    assert num_parameters(PRESETS[preset].model, size) == expected


def test_the_defaults_are_the_cifar10_network():
    assert num_parameters(UNet(), (32, 32, 3)) == 35_746_307


SIZES = [(8, 8, 1), (8, 8, 4), (7, 5, 3), (28, 28, 1), (4, 12, 3), (1, 1, 1), (32, 32, 3)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channel_mult", [(1,), (1, 2), (1, 1, 1, 1)])
def test_the_output_has_the_shape_of_the_images(size, channel_mult):
    network = make_network(
        UNetConfig(**(SMALL | {"channel_mult": channel_mult}), attn_levels=()), size
    )
    params = jax.eval_shape(network.init, jax.random.key(0))
    x_t, t = jax.ShapeDtypeStruct((2, *size), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    out = jax.eval_shape(network.apply_fn, params, x_t, t)
    assert (out.shape, out.dtype) == ((2, *size), jnp.float32)


@pytest.mark.parametrize(
    ("size", "multiple"), [((7, 5), 4), ((8, 8), 8), ((28, 28), 8), ((1, 3), 4)]
)
def test_padding_is_even_zero_and_undone(size, multiple):
    x = images(1, *size, 2)
    padded, crop = pad_to_multiple(x, multiple)
    assert padded.shape[1] % multiple == padded.shape[2] % multiple == 0
    assert padded.shape[1] - size[0] < multiple and padded.shape[2] - size[1] < multiple
    np.testing.assert_array_equal(crop(padded), x)
    np.testing.assert_allclose(padded.sum(), x.sum(), rtol=1e-4)  # measured: 1e-6


def test_a_new_network_predicts_almost_zero():
    network = make_network(
        UNetConfig(**(SMALL | {"channel_mult": (1,)}), attn_levels=()), (8, 8, 1)
    )
    x_t = images(2, 8, 8, 1)
    out = jax.jit(lambda key: network.apply_fn(network.init(key), x_t, T))(jax.random.key(0))
    assert 0 < jnp.abs(out).max() < 1e-3  # measured: 2e-5


def test_the_output_depends_on_image_and_timestep_example_by_example(small):
    apply_fn, params = small
    x_t = images(2, 8, 8, 1)
    out = apply_fn(params, x_t, T)
    other_t = apply_fn(params, x_t, T.at[0].set(4))
    other_x = apply_fn(params, x_t.at[0].add(0.1), T)
    for other in (other_t, other_x):
        assert jnp.abs(out[0] - other[0]).min() > 0
        np.testing.assert_array_equal(out[1], other[1])


def test_dropout_is_on_only_in_training_with_keys(small):
    apply_fn, params = small
    x_t = images(2, 8, 8, 1)
    out = apply_fn(params, x_t, T)
    np.testing.assert_array_equal(apply_fn(params, x_t, T, train=False, dropout_keys=KEYS), out)
    np.testing.assert_array_equal(apply_fn(params, x_t, T, train=True), out)
    dropped = apply_fn(params, x_t, T, train=True, dropout_keys=KEYS)
    assert not jnp.allclose(dropped, out, atol=1e-2)
    np.testing.assert_array_equal(apply_fn(params, x_t, T, train=True, dropout_keys=KEYS), dropped)


def test_dropout_of_an_example_depends_on_its_key_alone(small):
    apply_fn, params = small
    x_t = images(2, 8, 8, 1)
    together = apply_fn(params, x_t, T, train=True, dropout_keys=KEYS)
    swapped = apply_fn(params, x_t[::-1], T[::-1], train=True, dropout_keys=KEYS[::-1])
    # Measured: 0; a wrong mask changes outputs by about 1.
    np.testing.assert_allclose(swapped[::-1], together, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_gradients_are_finite_and_reach_every_parameter(small):
    apply_fn, params = small
    x_t = images(2, 8, 8, 1)
    grads = jax.jit(jax.grad(lambda p: (apply_fn(p, x_t, T) ** 2).mean()))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.all(jnp.isfinite(grad)), path
        # The keys' bias adds the same to every score of a row, which softmax takes away again.
        keys_bias = jax.tree_util.keystr(path).endswith("['k']['bias']")
        assert keys_bias or jnp.all(jnp.abs(grad).max() > 1e-6), path


def test_bfloat16_computes_near_float32_with_float32_parameters(small):
    apply_fn, params = small
    narrow = make_network(UNetConfig(**SMALL), (8, 8, 1), dtype=jnp.bfloat16)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(narrow.init, jax.random.key(0)))}
    assert kinds == {jnp.dtype(jnp.float32)}
    x_t = images(2, 8, 8, 1)
    expected, found = apply_fn(params, x_t, T), jax.jit(narrow.apply_fn)(params, x_t, T)
    assert found.dtype == jnp.float32
    error = jnp.abs(found - expected).max() / expected.std()
    # bfloat16 has 8 bits, 0.4 % per operation. Measured: 0.039 of the output's standard deviation.
    assert 1e-4 < error < 0.1


def test_float64_is_used_throughout_when_asked_for():
    network = make_network(UNetConfig(**SMALL), (8, 8, 1), dtype=jnp.float64)
    params = jax.eval_shape(network.init, jax.random.key(0))
    x_t, t = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float64), jax.ShapeDtypeStruct((2,), jnp.int32)
    jaxpr = str(jax.make_jaxpr(network.apply_fn)(params, x_t, t))
    assert jax.eval_shape(network.apply_fn, params, x_t, t).dtype == jnp.float64
    assert not any("bf16" in line for line in jaxpr.splitlines())


def test_labels_are_for_networks_with_classes(small):
    apply_fn, params = small
    with pytest.raises(TypeError, match="no classes, but a label"):
        apply_fn(params, images(2, 8, 8, 1), T, label=jnp.array([0, 1]))
    config = UNetConfig(**SMALL, attn_levels=(), num_classes=3)
    network = make_network(config, (8, 8, 1))
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert (config.num_labels, shapes["label_emb"]["embedding"].shape) == (3, (3, 16))
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes)
    with pytest.raises(TypeError, match="3 classes, but no label"):
        network.apply_fn(params, images(2, 8, 8, 1), T)
