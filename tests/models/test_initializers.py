import math
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.config.presets import PRESETS
from jax_ddpm.models import initializers, make_network
from jax_ddpm.models.initializers import (
    CHUNK,
    Described,
    describe_parameters,
    draw_parameters,
    fan_average,
    normal,
    uniform,
)
from tests.shared.families import FAMILIES

KEY = jax.random.key(3)


def init_network(config):
    return make_network(config, config.example_shape).init


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_of_every_architecture_is_described(name):
    """Otherwise a whole network is compiled to draw its parameters."""
    config = FAMILIES[name]
    network, x_t = config.module(1, jnp.float32), jnp.zeros((1, *config.example_shape))
    tree = describe_parameters(lambda key: network.init(key, x_t, jnp.zeros(1, int))["params"])
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Described))
    assert leaves and all(isinstance(leaf, Described) for leaf in leaves)


def test_a_compiled_draw_gives_the_same_bits_as_a_plain_one():
    big, short = (CHUNK // 100, 130), (7,)
    tree = {
        name: Described(jax.ShapeDtypeStruct(shape, jnp.float32), initializer)
        for name, shape, initializer in (
            ("a", big, uniform(0.3)),
            ("b", short, uniform(0.3)),
            ("c", big, normal(2.0)),
            ("d", (0, 3), uniform(1.0)),
        )
    }
    plain = draw_parameters(tree, KEY)
    compiled = jax.jit(lambda key: draw_parameters(tree, key))(KEY)
    for name in "ab":
        np.testing.assert_array_equal(plain[name], compiled[name])
    np.testing.assert_allclose(plain["c"], compiled["c"], rtol=1e-6)  # measured: 0
    assert plain["d"].shape == (0, 3)
    assert np.unique(plain["a"]).size > 0.99 * plain["a"].size  # chunks do not repeat each other


def test_distributions():
    for initializer, std in ((uniform(0.5), 0.5 / math.sqrt(3)), (normal(2.0), 2.0)):
        values = initializer.draw(KEY, (3, 50_000))
        assert abs(values.mean()) < 0.01 * std and abs(values.std() / std - 1) < 0.01
    values = uniform(0.5).draw(KEY, (CHUNK,))
    assert -0.5 <= values.min() < -0.499 and 0.499 < values.max() < 0.5
    kernel = fan_average(0.1)(0).kernel.draw(KEY, (3, 3, 40, 100))
    expected = nn.initializers.variance_scaling(0.1, "fan_avg", "uniform")(KEY, (3, 3, 40, 100))
    assert abs(kernel.std() / expected.std() - 1) < 0.01


def test_a_parameter_keeps_its_values_when_others_come_and_go():
    one = {"a": Described(jax.ShapeDtypeStruct((5,), jnp.float32), uniform(1.0))}
    two = {**one, "b": Described(jax.ShapeDtypeStruct((5,), jnp.float32), uniform(1.0))}
    drawn = draw_parameters(two, KEY)
    np.testing.assert_array_equal(draw_parameters(one, KEY)["a"], drawn["a"])
    assert not np.array_equal(drawn["a"], drawn["b"])


def test_drawing_a_network_compiles_one_program(monkeypatch):
    traces = []

    def count(*args):
        traces.append(args)
        return initializers.draw_chunk(*args)

    monkeypatch.setattr(initializers, "compiled_draw_chunk", jax.jit(count, static_argnums=(0, 1)))
    init = init_network(replace(PRESETS["fashion-cpu"].model, num_classes=None))
    one, other = init(KEY), init(jax.random.key(4))
    assert len(traces) == 1
    assert not np.array_equal(one["conv_in"]["kernel"], other["conv_in"]["kernel"])


def test_a_module_with_other_initialisers_is_initialised_by_itself():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x_t, t):
            return nn.Dense(x_t.shape[-1], bias_init=nn.initializers.constant(2.0))(x_t)

    params = make_network(Net(), (4, 4, 3)).init(KEY)
    np.testing.assert_array_equal(params["Dense_0"]["bias"], np.full(3, 2.0))
    assert params["Dense_0"]["kernel"].std() > 0


def test_no_network_draws_with_other_initialisers():
    """One parameter drawn otherwise, and the whole network is compiled to draw it."""
    for file in Path(initializers.__file__).parent.glob("*.py"):
        assert "nn.initializers" not in file.read_text(), file
