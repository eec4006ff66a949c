"""OpenAI's UNetModel, guided and improved: recorded numbers, names, and torch_ref's twin."""

import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, from_torch, to_state_dict, to_torch
from jax_ddpm.interop.network import complete_config
from jax_ddpm.interop.openai import find_factor
from jax_ddpm.interop.state_dict import rename
from jax_ddpm.models import make_network
from jax_ddpm.models.layers import timestep_embedding
from parity_tests.comparing import (
    DOUBLE_FIRST,
    GOLDENS,
    QUICK,
    SHORT,
    draws,
    load_weights,
    nchw_to_nhwc,
    read_golden,
    to_jax,
)
from torch_ref import openai as ref

THEIRS = "OpenAI (recorded)"
GUIDED, IMPROVED = "guided_diffusion", "improved_diffusion"
NEW_ORDER = f"{GUIDED}/unet_scaleshift_classcond"
UPDOWN = f"{GUIDED}/unet_updown_noscaleshift"
PLAIN = f"{IMPROVED}/unet_noscaleshift"
FRACTIONS = f"{IMPROVED}/unet_scaleshift_classcond"  # at fractional timesteps
CASES = [NEW_ORDER, UPDOWN, pytest.param(PLAIN, marks=pytest.mark.slow), FRACTIONS]
each_case = pytest.mark.parametrize("case", CASES)
HEADS = ("num_heads", "num_head_channels", "num_heads_upsample", "use_new_attention_order")


def find_source(case):
    return case.split("/")[0]


@functools.cache
def load_recorded(case):
    """Load (configuration, arrays, our network with the recorded weights in float32)."""
    manifest, io = read_golden(case)
    weights = load_weights(GOLDENS / case)
    return manifest["config"], io, from_torch(weights, find_source(case), manifest["config"])


def cast(params, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def to_images(array, dtype):
    return jnp.asarray(nchw_to_nhwc(array).astype(dtype))


def run_network(case, network, dtype):
    """The network's output for the recorded inputs."""
    _, io, _ = load_recorded(case)
    apply = jax.jit(network.apply, compiler_options=QUICK)
    return apply(
        cast(network.params, dtype), to_images(io["in.x"], dtype), io["in.t"], label=io.get("in.y")
    )


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@each_case
def test_output(compare, case, dtype):
    _, io, network = load_recorded(case)
    out = run_network(case, network, dtype)
    compare("OpenAI's U-Net", out, nchw_to_nhwc(io[f"{SHORT[dtype]}.out"]), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("case", [NEW_ORDER, UPDOWN])
def test_output_with_the_other_order_of_channels(compare, case, dtype):
    config, io, _ = load_recorded(case)
    other = config | {"use_new_attention_order": not config["use_new_attention_order"]}
    network = from_torch(load_weights(GOLDENS / case), GUIDED, other)
    theirs = nchw_to_nhwc(io[f"{SHORT[dtype]}.out_other_qkv_order"])
    compare("OpenAI's U-Net", run_network(case, network, dtype), theirs, dtype)


@pytest.mark.slow
@each_case
def test_gradients(compare, case, dtype):
    config, io, network = load_recorded(case)
    x, target = to_images(io["in.x"], dtype), to_images(io["in.target"], dtype)
    params = cast(network.params, dtype)
    label = jnp.asarray(io["in.y"]) if "in.y" in io else None

    def loss_fn(params, x):
        out = network.apply(params, x, io["in.t"], label=label)
        return ((out - target) ** 2).mean()

    loss, (grads, grad_x) = jax.jit(jax.value_and_grad(loss_fn, (0, 1)), compiler_options=QUICK)(
        params, x
    )
    theirs = {name[4:]: io[name] for name in io if name.startswith(SHORT[dtype])}
    compare("OpenAI's U-Net", loss, theirs["loss"].astype(dtype).reshape(()), dtype)
    compare("OpenAI's U-Net: gradients", grad_x, nchw_to_nhwc(theirs["grad_x"]), dtype)
    grads, params = (to_state_dict(tree, PEERS[find_source(case)]) for tree in (grads, params))
    assert grads.keys() == set(config["grad_rows"])
    rows = np.array(
        [summarize_gradient(grads[name], params[name]) for name in config["grad_rows"]], dtype
    )
    compare("OpenAI's U-Net: gradients", rows, theirs["param_grads"].astype(dtype), dtype)


def summarize_gradient(gradient, parameter):
    return gradient.sum(), np.linalg.norm(gradient.ravel()), (gradient * parameter).sum()


@pytest.mark.parametrize("dim", [32, 7])
def test_timestep_embedding(compare, dtype, dim):
    t = np.array([0, 1, 32.253254, 999], dtype)
    theirs = ref.timestep_embedding(torch.from_numpy(t), dim, getattr(torch, dtype)).numpy()
    order = {"denominator": dim // 2, "cos_first": True}
    ours = timestep_embedding(jnp.asarray(t), dim, dtype, **order)
    compare("timestep embedding", ours, theirs, dtype)


@each_case
def test_weights_go_back_bit_for_bit(case):
    weights, back = load_weights(GOLDENS / case), to_torch(load_recorded(case)[2])
    assert_equal_arrays(back, weights)


def test_half_precision_weights_go_back_bit_for_bit():
    """OpenAI's code halves only the convolutions of the three paths."""
    case = PLAIN
    weights = {
        name: array.astype(np.float16) if "block" in name and array.ndim > 2 else array
        for name, array in load_weights(GOLDENS / case).items()
    }
    assert_equal_arrays(to_torch(from_torch(weights, IMPROVED, load_recorded(case)[0])), weights)


@pytest.mark.parametrize("name", ["use_checkpoint", "dims"])
def test_arguments_that_change_no_result_are_accepted(name):
    config, _, network = load_recorded(PLAIN)
    weights = load_weights(GOLDENS / PLAIN)
    assert from_torch(weights, IMPROVED, config | {name: 2}).config == network.config


def assert_equal_arrays(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


@each_case
def test_shapes_reveal_everything_but_the_heads(case):
    config, _, network = load_recorded(case)
    heads = {name: config[name] for name in HEADS if name in config}
    weights, source = load_weights(GOLDENS / case), find_source(case)
    assert complete_config(weights, PEERS[source], source, heads) == network.config
    with pytest.raises(UserError, match="shapes do not reveal num_heads"):
        from_torch(weights, source)


def draw_config(source, seed):
    """Draw constructor arguments of the peer."""
    pick = random.Random(seed).choice
    num_levels = pick([1, 2, 2, 3])
    width = pick([32, 64]) if source == IMPROVED else pick([32, 64, 48, 33])
    mult = (1, *(pick([1, 2]) for _ in range(num_levels - 1)))
    if source == GUIDED:
        mult = tuple(find_factor(pick([32, 64, 96]), width) for _ in range(num_levels))
    config = {
        "in_channels": pick([1, 3, 4]),
        "model_channels": width,
        "out_channels": pick([1, 3, 6]),
        "num_res_blocks": pick([0, 1, 1, 2]),
        "attention_resolutions": pick([(), (1,), (2,), (1, 2), (4,)]),
        "channel_mult": mult,
        "num_classes": pick([None, 5]),
        "num_heads": pick([1, 2, 4]),
        "num_heads_upsample": pick([-1, 1, 8]),
        "use_scale_shift_norm": pick([False, True]),
    }
    if source == GUIDED:
        config |= {
            "conv_resample": pick([False, True]),
            "num_head_channels": pick([-1, 8, 32]),
            "resblock_updown": pick([False, True]),
            "use_new_attention_order": pick([False, True]),
        }
    return config


each_source = pytest.mark.parametrize("source", [GUIDED, IMPROVED])


@pytest.mark.parametrize("seed", range(3))
@each_source
def test_names_and_shapes_reveal_the_arguments_of_any_network(source, seed):
    config = draw_config(source, seed)
    shapes = {k: tuple(v.shape) for k, v in ref.UNetModel(**config).state_dict().items()}
    inferred = PEERS[source].infer(shapes)
    num_levels = len(config["channel_mult"])
    rates = {2**level for level in range(num_levels)}
    expected = {name: value for name, value in config.items() if name not in HEADS}
    expected["attention_resolutions"] = tuple(sorted(rates & set(config["attention_resolutions"])))
    if num_levels == 1:  # nothing changes the resolution
        expected.pop("resblock_updown", None)
    if num_levels == 1 or expected.get("resblock_updown"):
        expected.pop("conv_resample", None)
    found = PEERS[source].make_config(**inferred)
    assert {name: getattr(found, name) for name in expected} == expected
    for theirs in shapes:
        ours = rename(theirs, PEERS[source].names, 0)
        assert rename(ours, [(b, a) for a, b in PEERS[source].names], 0) == theirs


@pytest.mark.parametrize("case", [UPDOWN, FRACTIONS])
def test_the_reference_computes_what_was_recorded(compare, dtype, case):
    config, io, network = load_recorded(case)
    theirs = make_twin(config, network, dtype)
    inputs = [torch.from_numpy(io[name]) for name in ("in.x", "in.t", "in.y") if name in io]
    inputs[0] = inputs[0].to(getattr(torch, dtype))
    with torch.no_grad():
        out = theirs(*inputs)
    compare("OpenAI's U-Net", to_jax(out), nchw_to_nhwc(io[f"{SHORT[dtype]}.out"]), dtype)


def make_twin(config, network, dtype):
    """torch_ref's network with the weights of ours."""
    known = ref.UNetModel.__init__.__annotations__
    theirs = ref.UNetModel(**{name: value for name, value in config.items() if name in known})
    theirs = theirs.to(
        getattr(torch, dtype)
    ).eval()  # before loading, which would round float64 weights
    theirs.load_state_dict({name: torch.tensor(v) for name, v in to_torch(network).items()})
    return theirs


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@each_source
def test_random_networks_compute_what_the_reference_computes(compare, dtype, source, seed):
    config = draw_config(source, seed)
    shapes = {k: tuple(v.shape) for k, v in ref.UNetModel(**config).state_dict().items()}
    numbers = np.random.default_rng(seed)
    weights = {
        name: numbers.normal(0, 0.7 / np.sqrt(np.prod(shape[1:])), shape).astype(dtype)
        for name, shape in shapes.items()
    }
    network = from_torch(weights, source, config)
    multiple_of = 2 ** (len(config["channel_mult"]) - 1)
    x_t = draws((2, 2 * multiple_of, 3 * multiple_of, config["in_channels"]), dtype, seed)
    t, label = np.array([0.25, 700]), np.array([4, 0]) if config["num_classes"] else None
    ours = jax.jit(network.apply, compiler_options=QUICK)(network.params, x_t, t, label=label)
    args = (t,) if label is None else (t, label)
    x = torch.from_numpy(np.moveaxis(x_t, -1, 1).copy())
    with torch.no_grad():
        theirs = make_twin(config, network, dtype)(x, *map(torch.from_numpy, args))
    compare("OpenAI's U-Net", ours, to_jax(theirs), dtype)


MISTAKES = {
    "--model.num-heads is 3, but it must be a divisor of the 32": {"num_heads": 3},
    "--model.num-heads-upsample is 5, but": {"num_heads_upsample": 5},
    "--model.dropout is 1.5": {"dropout": 1.5},
    "dims is 3, but it must be 2": {"dims": 3},
    "attention_resolutions is '16,8', .* give image_size": {"attention_resolutions": "16,8"},
    "attention_resolutions is '16,x', but": {"attention_resolutions": "16,x", "image_size": 64},
    "channel_mult is '1;2', but it must be": {"channel_mult": "1;2"},
    "num_channels is 32, but model_channels is 64": {"num_channels": 32, "model_channels": 64},
    "learn_sigma is True, but the network has . input and . output": {"learn_sigma": True},
    "class_cond is True, but the network has no classes": {"class_cond": True},
    "no argument 'num_head', did you mean 'num_heads'?": {"num_head": 1},
    "--model.channel-mult is .*multiples of 32": {"channel_mult": [1, 0.3]},
    "does not fit: temb.dense_0.kernel is": {"model_channels": 64},
    "the weights lack label_emb.embedding": {"num_classes": 7},
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_wrong_arguments_are_named(sentence):
    weights = load_weights(GOLDENS / PLAIN)
    with pytest.raises(UserError, match=f"(?s){sentence}"):
        from_torch(weights, IMPROVED, MISTAKES[sentence])


SCRIPT = {
    "image_size": 16,
    "num_res_blocks": 1,
    "attention_resolutions": "32,8",
    "learn_sigma": True,
    "class_cond": True,
    "use_fp16": False,
    "diffusion_steps": 100,
    "noise_schedule": "cosine",
    "timestep_respacing": "",
    "use_kl": False,
}


@pytest.mark.parametrize("mult", ["", "1,2", None])
@each_source
def test_the_flags_of_their_scripts_are_understood(source, mult):
    """By default the scripts have 4 heads, the constructor has 1."""
    config = {
        "in_channels": 3,
        "model_channels": 32,
        "out_channels": 6,
        "num_res_blocks": 1,
        "attention_resolutions": (2,),
        "channel_mult": (1, 2),
        "num_classes": 1000,
        "num_heads": 4,
    }
    weights = {k: v.numpy() for k, v in ref.UNetModel(**config).state_dict().items()}
    flags = SCRIPT | {"num_channels": 32} | ({} if mult is None else {"channel_mult": mult})
    network = from_torch(weights, source, flags)
    assert network.config == from_torch(weights, source, config).config
    assert network.config.num_heads == 4
    two = from_torch(weights, source, flags | {"num_heads": 2})
    assert two.config.num_heads == 2


def test_improved_diffusion_refuses_the_weights_of_guided_diffusion():
    weights = load_weights(GOLDENS / UPDOWN)
    with pytest.raises(UserError, match="only guided_diffusion has"):
        from_torch(weights, IMPROVED, {})
    with pytest.raises(UserError, match="num-head-channels is 5"):
        from_torch(weights, GUIDED, {"num_head_channels": 5})


def test_a_missing_and_a_foreign_weight_are_named():
    weights = load_weights(GOLDENS / PLAIN)
    foreign = weights | {"input_blocks.0.1.weight": np.zeros(3)}
    with pytest.raises(UserError, match=r"weight input_blocks.0.1.weight of shape \(3,\)"):
        from_torch(foreign, IMPROVED, {})
    del weights["middle_block.1.qkv.bias"]
    with pytest.raises(UserError, match=r"the weights lack mid_1\.qkv\.bias"):
        from_torch(weights, IMPROVED, {})


def test_factors_reproduce_the_channels():
    for features in range(32, 4097, 32):
        for channels in range(1, 200):
            assert int(find_factor(features, channels) * channels) == features


@pytest.mark.slow
def test_initial_parameters_are_distributed_as_in_torch():
    """Uniform within 1/sqrt(fan_in), or zero where theirs are zero."""
    config, _, network = load_recorded(NEW_ORDER)
    init = make_network(network.config, network.config.example_shape).init
    ours = to_state_dict(init(jax.random.key(0)), PEERS[GUIDED])
    known = ref.UNetModel.__init__.__annotations__
    theirs = ref.UNetModel(**{name: value for name, value in config.items() if name in known})
    for name, parameter in theirs.state_dict().items():
        found, expected = ours[name], parameter.numpy()
        if np.ptp(expected) == 0:  # zeros and ones
            np.testing.assert_array_equal(found, expected)
        elif found.size > 150:
            np.testing.assert_allclose(found.std(), expected.std(), rtol=0.15)
            if name != "label_emb.weight":
                np.testing.assert_allclose(np.abs(found).max(), np.abs(expected).max(), rtol=0.1)
