"""Gradient checkpointing of every family: the same parameters and gradients, and less memory."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES, example, jaxpr_of, network_of

from jax_ddpm.config import Config, DiffusionConfig, TrainConfig
from jax_ddpm.models import UNetConfig
from jax_ddpm.models.remat import recomputed
from jax_ddpm.training.memory import step_memory


def squared(apply_fn, config):
    """A loss of the parameters, with dropout."""
    x_t, t, more = example(config)
    keys = jax.random.split(jax.random.key(3), len(t))

    def loss(params):
        out = apply_fn(params, x_t, t, train=True, dropout_keys=keys, **more)
        return (out**2).mean()

    return loss


def convolutions(fn, params):
    """How many convolutions the gradient of `fn` has."""
    equations = jaxpr_of(jax.grad(fn), params)
    return sum(eqn.primitive.name == "conv_general_dilated" for eqn in equations)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_blocks_of_every_family_are_computed_again(name):
    config = FAMILIES[name]
    network = network_of(config)
    params = jax.eval_shape(network.init, jax.random.key(0))
    plain, again, kept = (
        convolutions(squared(recomputed(network.apply_fn, remat), config), params)
        for remat in ("none", "nothing_saveable", "dots_and_convs_saveable")
    )
    forward = (
        plain / 3
    )  # one for the value, two for the gradient; a block's last needs no second time
    assert plain + 0.25 * forward < again < plain + forward
    assert kept == plain


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_and_parameters_stay_the_same(name):
    config = FAMILIES[name]
    network = network_of(config, jnp.float64)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    numbers = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: numbers.normal(0, 0.2, leaf.shape), shapes)
    plain = jax.jit(jax.value_and_grad(squared(network.apply_fn, config)))(params)
    again = recomputed(network.apply_fn, "nothing_saveable")
    found = jax.jit(jax.value_and_grad(squared(again, config)))(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    assert jax.tree.structure(found) == jax.tree.structure(plain)


def test_none_is_the_function_itself():
    network = network_of(FAMILIES["unet"])
    assert recomputed(network.apply_fn, "none") is network.apply_fn


@pytest.mark.slow
def test_a_step_takes_less_memory_and_the_state_takes_its_own_place():
    model = UNetConfig(channels=32, channel_mult=(1, 2), num_res_blocks=2, dropout=0.0)
    config = Config(
        model=model, diffusion=DiffusionConfig(num_timesteps=8), train=TrainConfig(batch_size=16)
    )
    plain = step_memory(config, (16, 16, 1))
    again = replace(config, train=replace(config.train, remat="nothing_saveable"))
    assert step_memory(again, (16, 16, 1)).temporaries < 0.7 * plain.temporaries
