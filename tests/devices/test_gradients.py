"""On sharded arrays a step has the same gradient as on one device, array by array.

An XLA fault is suspected of scaling the gradient of a convolution's kernel by a power of two when
an axis of the mesh shards neither its input nor its output, so the networks here have every kind of
convolution: strided, transposed, and at one pixel.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_ddpm.devices.layout import Layout, make_state, to_one_device
from jax_ddpm.devices.parallel import parallelize
from jax_ddpm.devices.sharding import RULES, split_largest_dimension
from jax_ddpm.models import AnnotatedConfig, UNetConfig, make_network
from jax_ddpm.process.losses import make_loss_fn
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.training.state import create_state
from jax_ddpm.training.step import make_train_step
from jax_ddpm.training.update import make_update

T = 10
SCHEDULE = named_schedule("linear", T, dtype=jnp.float64)
DESCENT = optax.sgd(1.0)  # the change of a parameter is its gradient
SMALL = ((r"", partial(split_largest_dimension, min_size=8)),)  # biases are split too

KERNELS = {
    "in": (3, 3, 1, 8),
    "down": (3, 3, 8, 16),
    "down_2": (4, 4, 16, 16),
    "up": (4, 4, 16, 8),
    "up_dilated": (3, 3, 8, 8),
    "point": (1, 1, 8, 16),
    "out": (3, 3, 16, 1),
}


def init(key):
    return {name: jnp.zeros(shape) for name, shape in KERNELS.items()} | {"bias": jnp.zeros(16)}


def apply_fn(params, x_t, t, **_):
    def convolve(x, name, stride=1, **options):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, params[name], (stride, stride), "SAME", dimension_numbers=layout, **options
        )

    x = jnp.tanh(convolve(x_t, "in"))
    x = jnp.tanh(convolve(x, "down", 2) + params["bias"][None, None, None])
    x = jnp.tanh(convolve(x, "down_2", 2))
    x = jax.lax.conv_transpose(x, params["up"], (2, 2), "SAME")
    x = jnp.tanh(x)
    x = jax.lax.conv_general_dilated(
        x,
        params["up_dilated"],
        (1, 1),
        ((1, 2), (1, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return convolve(jnp.tanh(convolve(x, "point")), "out")


def build_network(config, dtype=jnp.float64):
    return make_network(config, (8, 8, 1), dtype=dtype)


NETWORKS = {
    "convolutions": lambda: (init, apply_fn),
    "unet": lambda: build_network(
        UNetConfig(
            channels=8, channel_mult=(1, 2), num_res_blocks=1, attn_levels=(1,), num_groups=4
        )
    ),
    "annotated": lambda: build_network(AnnotatedConfig(dim=8, dim_mults=(1, 2))),
}


@cache
def compute_gradient(name, mode="jit", fsdp=1, rules=RULES):
    """Compute the gradient of one step, by array, and the new state; the start is fixed."""
    init, apply_fn = NETWORKS[name]()

    def make_step(axis_name):
        loss_fn = make_loss_fn(apply_fn, SCHEDULE)
        return make_train_step(make_update(loss_fn, DESCENT, axis_name=axis_name), T)

    def start(key):
        leaves, treedef = jax.tree.flatten(init(key))
        keys = jax.random.split(key, len(leaves))  # zeros would hide gradients
        pairs = zip(keys, leaves, strict=True)
        leaves = [jax.random.normal(key, leaf.shape, jnp.float64) / 5 for key, leaf in pairs]
        return create_state(jax.tree.unflatten(treedef, leaves), DESCENT)

    layout = Layout(mode, fsdp, rules)
    state = make_state(start, jax.random.key(0), layout)
    before = jax.tree.map(np.array, to_one_device(state.params))
    pixels = np.random.default_rng(1).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    step = parallelize(make_step, mode, fsdp=fsdp, rules=rules)
    state, _ = step(state, pixels, jax.random.key(2))
    change = jax.tree.map(lambda a, b: a - np.asarray(b), before, to_one_device(state.params))
    names = jax.tree_util.tree_leaves_with_path(change)
    return {jax.tree_util.keystr(path): leaf for path, leaf in names}, state


CASES = [
    pytest.param("convolutions", 2, SMALL, marks=(pytest.mark.slow, pytest.mark.guard)),
    pytest.param("convolutions", 4, SMALL, marks=pytest.mark.slow),
    pytest.param("convolutions", 8, SMALL, marks=pytest.mark.slow),
    pytest.param("unet", 2, RULES, marks=pytest.mark.slow),
    pytest.param("annotated", 2, SMALL, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "fsdp", "rules"), CASES)
def test_every_array_has_the_same_gradient_as_on_one_device(name, fsdp, rules):
    found, state = compute_gradient(name, "mesh", fsdp, rules)
    expected, _ = compute_gradient(name)
    assert found.keys() == expected.keys()
    whole = [leaf.size for leaf in jax.tree.leaves(state.params)]
    parts = [leaf.addressable_data(0).size for leaf in jax.tree.leaves(state.params)]
    assert sum(parts) < 0.75 * sum(whole)  # they are sharded
    largest = max(np.abs(wanted).max() for wanted in expected.values())
    for array, wanted in expected.items():
        off, scale = np.abs(found[array] - wanted).max(), np.abs(wanted).max()
        # Some arrays, such as the bias of attention's keys, have no gradient but rounding.
        assert off < 1e-10 * scale + 1e-12 * largest, array  # measured: 3e-13
