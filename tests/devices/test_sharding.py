"""Rules from an array's path to its PartitionSpec."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jax_ddpm.config.presets import PRESETS
from jax_ddpm.devices.sharding import RULES, make_partition_specs, split_largest_dimension
from jax_ddpm.models import make_network

MESH = {"data": 2, "fsdp": 4}


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 128), P(None, None, None, "fsdp")),
        ((3, 3, 128, 64), P(None, None, "fsdp")),
        ((64, 64), P(None, "fsdp")),
        ((3, 3, 64, 3), P(None, None, "fsdp")),
        ((3, 5, 7, 11), P()),
        ((128,), P()),
        ((), P()),
    ],
)
def test_the_largest_dimension_that_divides_is_split(shape, spec):
    assert split_largest_dimension(shape, 4) == spec


def test_the_first_matching_rule_applies_and_indivisible_dimensions_stay_whole():
    tree = {"mid": {"kernel": np.zeros((6, 8)), "bias": np.zeros(8)}, "out": np.zeros((8, 8))}
    rules = ((r"kernel$", P("fsdp", "data")), (r"^mid/", P(("data", "fsdp"))))
    found = make_partition_specs(tree, rules, MESH)
    assert found == {"mid": {"kernel": P(None, "data"), "bias": P(("data", "fsdp"))}, "out": P()}


def mark_most_slow(names):
    return [
        n if n in ("fashion-cpu", "ddpm-cifar10") else pytest.param(n, marks=pytest.mark.slow)
        for n in names
    ]


@pytest.mark.parametrize("name", mark_most_slow(PRESETS))
def test_nearly_all_of_a_preset_is_split(name):
    model = PRESETS[name].model
    channels = 1 if name.startswith(("fashion", "pulfer")) else 3
    size = 28 if name == "pulfer" else 32
    network = make_network(model, (size, size, channels), dtype=jnp.float32)
    params = {"params": jax.eval_shape(network.init, jax.random.key(0))}
    specs = make_partition_specs(params, RULES, {"data": 1, "fsdp": 8})
    split = jax.tree.map(
        lambda s, leaf: leaf.size / (8 if "fsdp" in s else 1),
        specs,
        params,
        is_leaf=lambda leaf: isinstance(leaf, P),
    )
    part = sum(jax.tree.leaves(split)) / sum(leaf.size for leaf in jax.tree.leaves(params))
    # Measured: at most 0.15; the rest are biases, norms and dimensions that do not divide. For
    # pulfer's, the smallest network, with its tables and odd sizes: 0.437.
    assert 0.125 <= part < (0.45 if name == "pulfer" else 0.2)
