"""The networks of the Annotated Diffusion Model and the EPITA practical: recorded, and twins."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, from_torch
from jax_ddpm.interop import to_torch as to_torch_names
from jax_ddpm.interop.network import complete_config
from jax_ddpm.interop.state_dict import rename
from jax_ddpm.models import AnnotatedConfig, AnnotatedWSConfig, make_network, parameter_shapes
from jax_ddpm.models.annotated_ws import standardize
from jax_ddpm.models.layers import pixel_unshuffle
from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.losses import diffusion_loss
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.samplers import ddpm
from jax_ddpm.samplers.base import SamplerState
from parity_tests.comparing import (
    DOUBLE_FIRST,
    GOLDENS,
    QUICK,
    SHORT,
    load_weights,
    nchw_to_nhwc,
    order_rows,
    read_golden,
    to_jax,
    to_torch,
)
from tests.shared.long_tests import mark_others_long
from torch_ref.annotated import AnnotatedUNet as TorchUNet
from torch_ref.annotated_ws import AnnotatedWSUNet as TorchWSUNet

THEIRS = "tutorials (recorded)"

CASES = {
    "annotated_a0_layernorm/unet_convnext": "annotated_layernorm",
    "annotated_a1/unet_convnext": "annotated",
    "annotated_a1/unet_resnet": "annotated",
    "annotated_a2_ws/unet_ws_divide": "annotated_ws",
    "annotated_a2_ws/unet_ws_multiply": "annotated_ws",
    "epita/unet_convnext": "epita",
    "epita/unet_resnet": "epita",
}
# By default one case is compared in full, and the others only with the twin.
FIRST = "annotated_a2_ws/unet_ws_multiply"
FIRST_CASES = [c if c == FIRST else pytest.param(c, marks=pytest.mark.slow) for c in CASES]


def read_recorded_config(case):
    return read_golden(case)[0]["config"]


@functools.cache
def load_recorded(case):
    """(configuration, inputs and results, our network with the recorded weights)."""
    config, io = read_recorded_config(case), read_golden(case)[1]
    return config, io, from_torch(load_weights(GOLDENS / case), CASES[case], config)


@functools.cache
def compile_network(case):
    return jax.jit(load_recorded(case)[2].apply, compiler_options=QUICK)


def read_inputs(case, dtype):
    """Read parameters, images by name, timesteps and recorded results, in `dtype`."""
    _, io, network = load_recorded(case)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), network.params)
    images = {
        name[3:]: jnp.asarray(nchw_to_nhwc(io[name]).astype(dtype))
        for name in io
        if name.startswith("in.") and io[name].ndim == 4
    }
    theirs = {name[4:]: io[name].astype(dtype) for name in io if name.startswith(SHORT[dtype])}
    theirs = {name: nchw_to_nhwc(a) if a.ndim == 4 else a for name, a in theirs.items()}
    return params, images, jnp.asarray(io["in.t"].astype(np.int32)), theirs


def condition_on(images):
    return {"x_self_cond": images["sc"]} if "sc" in images else {}


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize("case", FIRST_CASES)
def test_output(compare, dtype, case):
    params, images, t, theirs = read_inputs(case, dtype)
    out = compile_network(case)(params, images["x"], t, **condition_on(images))
    compare("tutorials' U-Nets", out, theirs["out"], dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_steps(compare, dtype, case):
    """p_losses, and p_sample at the ends and in the middle; both without self-conditioning."""
    params, images, t, theirs = read_inputs(case, dtype)
    T = load_recorded(case)[0]["T"]
    schedule = named_schedule("linear", T, dtype=dtype)
    for loss_type in ("l1", "l2", "huber"):
        loss = diffusion_loss(
            compile_network(case),
            params,
            schedule,
            images["x0"],
            t,
            images["noise"],
            loss_type=loss_type,
        )
        compare("losses", loss.mean(), theirs[f"p_losses_{loss_type}"].reshape(()), dtype)
    denoise_fn = make_denoise_fn(compile_network(case), params, clip_x_0=False)
    for i in (T - 1, T // 2, 0):
        cur, nxt = (level_at(schedule, jnp.int32(j)) for j in (i, i - 1))
        state = SamplerState(images["x"])
        state, _ = ddpm("fixed_small").step(state, images["noise"], cur, nxt, denoise_fn)
        compare("one sampler step", state.x_t, theirs[f"p_sample_t{i}"], dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", mark_others_long(["float64", "float32"], keep=("float64",)))
@pytest.mark.parametrize("case", CASES)
def test_gradients(compare, dtype, case):
    config, _, network = load_recorded(case)
    params, images, t, theirs = read_inputs(case, dtype)

    def loss_fn(params, x):
        out = network.apply(params, x, t, **condition_on(images))
        return ((out - images["target"]) ** 2).mean()

    gradient = jax.jit(jax.value_and_grad(loss_fn, (0, 1)), compiler_options=QUICK)
    loss, (grads, grad_x) = gradient(params, images["x"])
    compare("tutorials' U-Nets", loss, theirs["loss"].reshape(()), dtype)
    compare("tutorials' U-Nets: gradients", grad_x, theirs["grad_x"], dtype)
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True)
    ours = [(g.sum(), jnp.linalg.norm(g.ravel()), (g * p).sum()) for g, p in pairs]
    order = order_rows(config["grad_rows"], load_weights(GOLDENS / case), CASES[case], params)
    rows = theirs["param_grads"][order]
    compare("tutorials' U-Nets: gradients", np.array(ours, dtype), rows, dtype)


@pytest.mark.parametrize("case", CASES)
def test_the_table_of_names_is_read_both_ways(case):
    peer, weights = PEERS[CASES[case]], load_weights(GOLDENS / case)
    levels = len(read_recorded_config(case)["dim_mults"])
    ours = {name: rename(name, peer.names, levels) for name in weights}
    assert len(set(ours.values())) == len(weights)
    assert not any(
        re.search(r"\b(net|fn|mlp|downs|ups|to_|final)\b", name) for name in ours.values()
    )
    backwards = [(ours, theirs) for theirs, ours in peer.names]
    for theirs, name in ours.items():
        assert rename(name, backwards, levels) == theirs


@pytest.mark.parametrize("case", FIRST_CASES)
def test_weights_go_back_bit_for_bit(case):
    weights = load_weights(GOLDENS / case)
    back = to_torch_names(load_recorded(case)[2])
    assert back.keys() == weights.keys()
    for name, array in weights.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def make_twin(source, **arguments):
    """torch_ref's network with random parameters, none of them zero or one."""
    cls = TorchWSUNet if source == "annotated_ws" else TorchUNet
    if source == "annotated_layernorm":
        arguments["layer"] = True
    if method := arguments.pop("weight_standardization", None):
        arguments["divide"] = method == "divide"
    theirs = cls(**arguments).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            parameter /= parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 3
            if name.endswith((".g", "norm.weight")):
                parameter += 1
    return theirs


@pytest.mark.parametrize("case", CASES)
def test_the_twin_computes_what_was_recorded(compare, case):
    manifest, io = read_golden(case)
    config = manifest["config"]
    arguments = config.keys() & set(PEERS[CASES[case]].arguments)
    theirs = make_twin(CASES[case], **{name: config[name] for name in arguments})
    weights = load_weights(GOLDENS / case)
    theirs.load_state_dict({name: torch.tensor(a).double() for name, a in weights.items()})
    arrays = {
        name: torch.tensor(io[f"in.{name}"]) for name in ("x", "t", "sc") if f"in.{name}" in io
    }
    with torch.no_grad():
        out = theirs(*(a.double() if a.ndim == 4 else a for a in arrays.values()))
    compare("tutorials' U-Nets", to_jax(out), nchw_to_nhwc(io["f64.out"]), "float64")


# Source, arguments, height and width.
SETTINGS = [
    ("annotated", {"dim": 5, "with_time_emb": False, "convnext_mult": 3, "channels": 2}, (4, 6)),
    (
        "annotated",
        {
            "dim": 6,
            "dim_mults": (1,),
            "use_convnext": False,
            "resnet_block_groups": 3,
            "init_dim": 6,
            "out_dim": 4,
            "with_time_emb": False,
        },
        (3, 5),
    ),
    ("annotated", {"dim": 4, "dim_mults": (1, 3, 2), "init_dim": 1, "convnext_mult": 1}, (9, 4)),
    ("annotated_layernorm", {"dim": 8, "use_convnext": False, "resnet_block_groups": 4}, (4, 2)),
    ("annotated_layernorm", {"dim": 4, "dim_mults": (1, 2, 1), "init_dim": 4}, (4, 8)),
    (
        "annotated_ws",
        {
            "dim": 6,
            "dim_mults": (2, 1, 3),
            "resnet_block_groups": 3,
            "channels": 1,
            "out_dim": 2,
            "self_condition": True,
        },
        (4, 8),
    ),
    (
        "annotated_ws",
        {"dim": 4, "dim_mults": (3,), "weight_standardization": "divide", "init_dim": 4},
        (3, 2),
    ),
    ("epita", {"dim": 6, "use_convnext": False, "resnet_block_groups": 1}, (2, 2)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "arguments", "size"), SETTINGS)
def test_every_setting_computes_what_the_twin_does(compare, source, arguments, size):
    """Including fractional timesteps, and an odd side, which comes out one pixel shorter."""
    arguments = {"dim_mults": (1, 2), "channels": 3} | arguments
    theirs = make_twin(source, **arguments)
    network = from_torch(theirs.state_dict(), source, arguments)
    x = np.random.default_rng(0).standard_normal((2, *size, arguments["channels"]))
    t = np.array([0.25, 977])
    with torch.no_grad():
        expected = to_jax(theirs(to_torch(x), torch.from_numpy(t)))
    out = jax.jit(network.apply, compiler_options=QUICK)(network.params, x, t)
    compare("tutorials' U-Nets", out, expected, "float64")
    back = to_torch_names(network)
    assert back.keys() == theirs.state_dict().keys()
    assert all(np.array_equal(back[name], a) for name, a in theirs.state_dict().items())


def read_config(source, theirs, given):
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    return complete_config(tensors, PEERS[source], source, given)


@pytest.mark.parametrize(("source", "arguments", "size"), SETTINGS)
def test_shapes_and_names_reveal_the_settings(source, arguments, size):
    """All except the groups, which ConvNeXt blocks lack, and weight standardisation."""
    arguments = {"dim_mults": (1, 2), "channels": 3} | arguments
    theirs = make_twin(source, **arguments)
    given = None
    if source == "annotated_ws" or not arguments.get("use_convnext", True):
        with pytest.raises(UserError, match="shapes do not reveal resnet_block_groups"):
            read_config(source, theirs, given)
        names = {"resnet_block_groups", "weight_standardization", "self_condition"}
        given = {name: arguments[name] for name in names & arguments.keys()}
    config = read_config(source, theirs, given)
    for name, value in arguments.items():
        assert getattr(config, name) == value, name


def test_channels_and_self_conditioning_imply_each_other():
    theirs = make_twin("annotated_ws", dim=4, dim_mults=(1,), channels=4, out_dim=2)
    for given, channels, self_condition in [
        ({}, 2, True),
        ({"channels": 4}, 4, False),
        ({"self_condition": False}, 4, False),
    ]:
        config = read_config("annotated_ws", theirs, given)
        assert (config.channels, config.self_condition) == (channels, self_condition)


def test_pixel_unshuffle_equals_torch():
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 3))
    expected = torch.nn.functional.pixel_unshuffle(to_torch(x), 2)
    np.testing.assert_array_equal(pixel_unshuffle(jnp.asarray(x)), to_jax(expected))


def test_weight_standardization_follows_its_formula():
    kernel = jnp.asarray(np.random.default_rng(0).normal(3, 0.5, (3, 3, 8, 4)))
    variance = kernel.var((0, 1, 2))
    right = standardize(kernel, "multiply", jnp.float64)
    np.testing.assert_allclose(right.mean((0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(right.var((0, 1, 2)), variance / (variance + 1e-5))
    published = standardize(kernel, "divide", jnp.float32)
    np.testing.assert_allclose(published.var((0, 1, 2)), variance * (variance + 1e-5))
    half = standardize(kernel, "multiply", jnp.bfloat16)
    np.testing.assert_allclose(half.var((0, 1, 2)), variance / (variance + 1e-3))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["annotated", "annotated_ws"])
def test_initial_parameters_are_distributed_as_in_torch(source):
    """Uniform within 1/sqrt(fan_in)."""
    arguments = {"dim": 16, "dim_mults": (1, 2), "channels": 3}
    cls = TorchWSUNet if source == "annotated_ws" else TorchUNet
    theirs = cls(**arguments).state_dict()
    network = from_torch(theirs, source, arguments)
    init = make_network(network.config, network.config.example_shape).init
    ours = to_torch_names(type(network)(source, network.config, init(jax.random.key(0)), None))
    for name, expected in theirs.items():
        if ours[name].size > 150:
            np.testing.assert_allclose(abs(ours[name]).max(), abs(expected).max(), rtol=0.1)
            np.testing.assert_allclose(ours[name].std(), expected.std(), rtol=0.2)


BAD = [
    (AnnotatedConfig(dim=6, dim_mults=(2, 2)), "dim-mults is .* 1 at full resolution"),
    (AnnotatedConfig(dim=28, use_convnext=False), "resnet-block-groups is 8.*divisor of dim 28"),
    (AnnotatedConfig(dim=7), "dim is 7.*even number, at least 4"),
    (AnnotatedConfig(dim=2, with_time_emb=False), "init-dim is None.*at least 1"),
    (AnnotatedConfig(convnext_mult=0), "convnext-mult is 0"),
    (AnnotatedConfig(dim_mults=()), "dim-mults"),
    (AnnotatedWSConfig(dim=2), "dim is 2.*even number, at least 4"),
    (AnnotatedWSConfig(init_dim=18), "init-dim is 18.*dim, 28"),
    (AnnotatedWSConfig(resnet_block_groups=8), "resnet-block-groups is 8.*divisor of dim 28"),
]


@pytest.mark.parametrize(("config", "sentence"), BAD)
def test_settings_that_cannot_work_are_refused(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        config.check()


@pytest.mark.slow
def test_the_published_sizes_are_the_defaults():
    """dim 28, three resolutions, one channel: the network that they train on Fashion-MNIST."""
    for config, theirs in {
        AnnotatedConfig(channels=1): TorchUNet,
        AnnotatedWSConfig(channels=1): TorchWSUNet,
    }.items():
        config.check()
        with torch.device("meta"):
            expected = sum(
                p.numel() for p in theirs(28, channels=1, dim_mults=(1, 2, 4)).parameters()
            )
        assert sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(config))) == expected
