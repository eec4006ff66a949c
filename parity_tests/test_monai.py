"""MONAI's DiffusionModelUNet: recorded numbers, names both ways, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.interop import from_torch, to_torch
from parity_tests.comparing import (
    DOUBLE_FIRST,
    GOLDENS,
    QUICK,
    SHORT,
    load_weights,
    nchw_to_nhwc,
    read_golden,
)

THEIRS = "MONAI (recorded)"
PLAIN, CLASSES = "monai/unet_attention", "monai/unet_classes_updown"
each_case = pytest.mark.parametrize("case", [PLAIN, CLASSES])


@functools.cache
def load_recorded(case):
    manifest, io = read_golden(case)
    weights = load_weights(GOLDENS / case)
    return manifest["config"], io, weights, from_torch(weights, config=manifest["config"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@each_case
def test_the_network_computes_what_was_recorded(compare, dtype, case):
    _, io, _, network = load_recorded(case)
    assert network.source == "monai"
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), network.params)
    x, label = jnp.asarray(nchw_to_nhwc(io["in.x"]), dtype), io.get("in.y")
    apply = jax.jit(network.apply, compiler_options=QUICK)
    out = apply(params, x, jnp.asarray(io["in.t"]), label=label)
    compare("U-Net", out, nchw_to_nhwc(io[f"{SHORT[dtype]}.out"]), dtype)


@each_case
def test_names_go_back_bit_for_bit(case):
    _, _, weights, network = load_recorded(case)
    back = to_torch(network)
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[name], weights[name]) for name in weights)


def test_names_of_the_older_package_are_read():
    config, _, weights, network = load_recorded(PLAIN)
    old = {
        name.replace(".attn.out_proj", ".proj_attn")
        .replace(".attn.to_", ".to_")
        .replace("postconv", "conv"): array
        for name, array in weights.items()
    }
    assert old.keys() != weights.keys()
    for ours, theirs in zip(
        *map(jax.tree.leaves, (network.params, from_torch(old, config=config).params)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"spatial_dims": 3}, "spatial_dims is 3, but only networks with spatial_dims 2"),
        ({"num_res_blocks": [1, 2]}, "the same number everywhere"),
        ({"num_head_channels": [4, 16], "attention_levels": [True, True]}, "heads of one size"),
        ({"with_conditioning": True}, "with_conditioning is True"),
        ({"norm_eps": 0.0}, "norm-eps is 0.0"),
    ],
)
def test_what_unet2d_does_not_have_is_refused(changes, sentence):
    config, _, weights, _ = load_recorded(PLAIN)
    with pytest.raises(UserError, match=sentence):
        from_torch(weights, "monai", config | changes)


def test_weights_without_their_arguments_are_refused():
    _, _, weights, _ = load_recorded(PLAIN)
    with pytest.raises(UserError, match="shapes do not reveal num_head_channels"):
        from_torch(weights)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight", "cross-attention"),
        ("down_blocks.0.attentions.0.attn.qkv.weight", "one projection for queries"),
    ],
)
def test_other_networks_are_refused_by_what_they_have(name, what):
    config, _, weights, _ = load_recorded(PLAIN)
    with pytest.raises(UserError, match=what):
        from_torch(weights | {name: np.zeros((4, 4), np.float32)}, "monai", config)
