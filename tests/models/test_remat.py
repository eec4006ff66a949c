"""Gradient checkpointing of every family: the same parameters and gradients, and less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.models import UNetConfig, make_network
from jax_ddpm.models.remat import recompute_segments
from tests.shared.families import EACH, FAMILIES, build_network, list_equations, make_example
from tests.shared.long_tests import mark_others_long


def make_squared_loss(apply_fn, config):
    """Make a loss of the parameters, with dropout."""
    x_t, t, more = make_example(config)
    keys = jax.random.split(jax.random.key(3), len(t))

    def loss(params):
        out = apply_fn(params, x_t, t, train=True, dropout_keys=keys, **more)
        return (out**2).mean()

    return loss


def count_convolutions(fn, params):
    """Count the convolutions in the gradient of `fn`."""
    equations = list_equations(jax.grad(fn), params)
    return sum(eqn.primitive.name == "conv_general_dilated" for eqn in equations)


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_the_blocks_of_every_family_are_computed_again(name):
    config = FAMILIES[name]
    network = build_network(config)
    params = jax.eval_shape(network.init, jax.random.key(0))
    plain, again, kept = (
        count_convolutions(
            make_squared_loss(recompute_segments(network.apply_fn, remat), config), params
        )
        for remat in ("none", "nothing_saveable", "dots_and_convs_saveable")
    )
    forward = plain / 3  # the gradient adds two for each; the last of a block is not repeated
    assert plain + 0.25 * forward < again < plain + forward
    assert kept == plain


@pytest.mark.slow
@pytest.mark.parametrize("name", mark_others_long(["unet", "pulfer", "lucidrains"], keep=("unet",)))
def test_loss_and_gradients_stay_the_same(name):
    config = FAMILIES[name]
    network = build_network(config, jnp.float64)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    numbers = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: numbers.normal(0, 0.2, leaf.shape), shapes)
    plain = jax.jit(jax.value_and_grad(make_squared_loss(network.apply_fn, config)))(params)
    again = recompute_segments(network.apply_fn, "nothing_saveable")
    found = jax.jit(jax.value_and_grad(make_squared_loss(again, config)))(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)  # measured: 5e-16
    assert jax.tree.structure(found) == jax.tree.structure(plain)


def test_remat_none_returns_the_function_itself():
    network = build_network(FAMILIES["unet"])
    assert recompute_segments(network.apply_fn, "none") is network.apply_fn


@pytest.mark.slow
def test_the_gradient_takes_less_memory():
    """With XLA's memory scheduler, because the default scheduler on CPUs undoes the saving."""
    config = UNetConfig(
        channels=16, channel_mult=(1, 1), num_res_blocks=3, attn_levels=(), num_groups=4
    )
    network = make_network(config, (32, 32, 1))
    params = jax.eval_shape(network.init, jax.random.key(0))
    x_t, t = jax.ShapeDtypeStruct((16, 32, 32, 1), jnp.float32), jnp.zeros(16, jnp.int32)

    def measure_temporaries(remat):
        apply_fn = recompute_segments(network.apply_fn, remat)
        loss = lambda params, x_t: (apply_fn(params, x_t, t) ** 2).mean()  # noqa: E731
        options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
        program = jax.jit(jax.grad(loss), compiler_options=options).lower(params, x_t).compile()
        return program.memory_analysis().temp_size_in_bytes

    plain, again = measure_temporaries("none"), measure_temporaries("nothing_saveable")
    assert again < 0.9 * plain  # measured: 0.74
