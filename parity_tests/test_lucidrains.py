"""lucidrains' U-Net: recorded numbers, its names and files, and its twin in torch_ref."""

import functools
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, from_torch, to_state_dict
from jax_ddpm.interop import to_torch as to_torch_names
from jax_ddpm.interop.state_dict import rename
from jax_ddpm.interop.unwrap import find_network
from parity_tests.comparing import GOLDENS, QUICK, SHORT, load_weights, nchw_to_nhwc, read_golden
from torch_ref.lucidrains import LucidrainsUNet as TorchUNet

THEIRS = "lucidrains (recorded)"
PEER = PEERS["lucidrains"]
ARGUMENTS = [name for name in PEER.arguments if name in signature(TorchUNet).parameters]
CASES = ["unet_default", "unet_learned_sinusoidal", "unet_learned_variance", "unet_self_condition"]
FIRST_CASES = [pytest.param(case, marks=pytest.mark.slow) for case in CASES[:-1]] + CASES[-1:]


@functools.cache
def load_recorded(case):
    """Load (configuration, names of the rows of gradients, arrays, weights)."""
    manifest, io = read_golden(f"lucidrains/{case}")
    rows = manifest["config"].pop("grad_rows")
    return manifest["config"], rows, io, load_weights(GOLDENS / "lucidrains" / case)


@functools.cache
def load_network(case):
    config, _, _, weights = load_recorded(case)
    return from_torch(weights, "lucidrains", config)


def read_inputs(case, dtype):
    """Read our parameters, images, keyword arguments, target and results, in `dtype`."""
    _, _, io, _ = load_recorded(case)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), load_network(case).params)
    x, target = (nchw_to_nhwc(io[name]).astype(dtype) for name in ("in.x", "in.target"))
    arguments = {"t": io["in.t"]}
    if "in.sc" in io:
        arguments["x_self_cond"] = jnp.asarray(nchw_to_nhwc(io["in.sc"]), dtype)
    theirs = {name[4:]: io[name].astype(dtype) for name in io if name.startswith(SHORT[dtype])}
    theirs = {name: nchw_to_nhwc(a) if a.ndim == 4 else a for name, a in theirs.items()}
    return params, x, arguments, target, theirs


@pytest.mark.parametrize("case", FIRST_CASES)
def test_recorded_output(compare, case):
    params, x, arguments, _, theirs = read_inputs(case, "float64")
    out = jax.jit(load_network(case).apply, compiler_options=QUICK)(params, x, **arguments)
    compare("lucidrains' U-Net", out, theirs["out"], "float64")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_recorded_gradients(compare, dtype, case):
    params, x, arguments, target, theirs = read_inputs(case, dtype)

    def loss_fn(params, x):
        out = load_network(case).apply(params, x, **arguments)
        return ((out - target) ** 2).mean(), out

    gradient = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)
    (loss, out), (grads, grad_x) = jax.jit(gradient, compiler_options=QUICK)(params, x)
    compare("lucidrains' U-Net", out, theirs["out"], dtype)
    compare("lucidrains' U-Net", loss, theirs["loss"].reshape(()), dtype)
    compare("lucidrains' U-Net: gradients", grad_x, theirs["grad_x"], dtype)
    grads, params = (to_state_dict(tree, PEER) for tree in (grads, params))
    compare_rows(compare, case, [(grads[n], params[n]) for n in load_recorded(case)[1]], dtype)


def compare_rows(compare, case, pairs, dtype):
    """Compare the sum and norm of each gradient, and its inner product with its parameter."""
    ours = [(g.sum(), np.linalg.norm(g.ravel()), (g * p).sum()) for g, p in pairs]
    theirs = load_recorded(case)[2][f"{SHORT[dtype]}.param_grads"]
    compare("lucidrains' U-Net: gradients", np.array(ours, dtype), theirs.astype(dtype), dtype)


@pytest.mark.parametrize("case", CASES)
def test_the_twin_computes_what_was_recorded(compare, case):
    config, rows, io, weights = load_recorded(case)
    theirs = TorchUNet(**{n: tuple(v) if isinstance(v, list) else v for n, v in config.items()})
    theirs.double().load_state_dict({n: torch.tensor(a) for n, a in weights.items()}, strict=True)
    x, target, *sc = (
        torch.tensor(io[n]).double() for n in ("in.x", "in.target", "in.sc") if n in io
    )
    out = theirs(x.requires_grad_(), torch.tensor(io["in.t"]), *sc)
    loss = ((out - target) ** 2).mean()
    loss.backward()
    compare("lucidrains' U-Net", out.detach().numpy(), io["f64.out"], "float64")
    compare("lucidrains' U-Net", loss.detach().numpy(), io["f64.loss"].reshape(()), "float64")
    compare("lucidrains' U-Net: gradients", x.grad.numpy(), io["f64.grad_x"], "float64")
    named = dict(theirs.named_parameters())
    pairs = [(named[name].grad.numpy(), named[name].detach().numpy()) for name in rows]
    compare_rows(compare, case, pairs, "float64")


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        array = np.asarray(array)
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape), name
        assert ours[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("case", CASES)
def test_a_round_trip_keeps_every_bit(case):
    assert_same_bits(to_torch_names(load_network(case)), load_recorded(case)[3])


@pytest.mark.parametrize("case", CASES)
def test_the_table_of_names_is_read_both_ways(case):
    config, _, _, weights = load_recorded(case)
    levels = len(config["dim_mults"])
    ours = {name: rename(name, PEER.names, levels) for name in weights}
    assert len(set(ours.values())) == len(weights)
    backwards = [(ours, theirs) for theirs, ours in PEER.names]
    for theirs, name in ours.items():
        assert rename(name, backwards, levels) == theirs


@pytest.mark.parametrize("case", CASES)
def test_shapes_reveal_the_configuration(case):
    """They give the same configuration, with every default spelled out."""
    weights = load_recorded(case)[3]
    shapes = {name: array.shape for name, array in weights.items()}
    given, inferred = load_network(case).config, PEER.make_config(**PEER.infer(shapes))
    assert inferred.widths == given.widths and inferred.full_attention == given.full_attention
    spelled_out = {"init_dim", "attn_heads", "attn_dim_head", "full_attn"}
    for name in ARGUMENTS:
        if name not in spelled_out:
            assert getattr(inferred, name) == getattr(given, name), name


def test_a_configuration_is_not_needed():
    weights = load_recorded("unet_learned_sinusoidal")[3]
    network = from_torch(weights, "lucidrains")
    assert network.config.learned_sinusoidal_dim == 8
    assert_same_bits(to_torch_names(network), weights)


def list_shapes(**arguments):
    with torch.device("meta"):
        theirs = TorchUNet(**{**SMALL, **arguments})
    return {name: tuple(tensor.shape) for name, tensor in theirs.named_parameters()}


SMALL = {"dim": 8, "dim_mults": (1, 2), "attn_dim_head": 2, "attn_heads": 2}
READINGS = [
    ({"channels": 1}, {}),
    ({"channels": 4, "self_condition": True}, {}),
    ({"channels": 4, "out_dim": 7}, {}),
    ({"channels": 3, "self_condition": True, "learned_variance": True}, {"learned_variance": True}),
    ({"channels": 3, "self_condition": True, "learned_variance": True}, {"channels": 3}),
    ({"channels": 4, "self_condition": True, "out_dim": 3}, {"self_condition": True}),
    ({"attn_heads": (1, 3), "attn_dim_head": (4, 2), "full_attn": (True, False)}, {}),
    ({"full_attn": (False, False), "init_dim": 5, "learned_sinusoidal_cond": True}, {}),
]


@pytest.mark.parametrize(("arguments", "given"), READINGS)
def test_shapes_and_given_arguments_reveal_the_rest(arguments, given):
    shapes = list_shapes(**arguments)
    inferred = PEER.make_config(**PEER.infer(shapes), **given)
    for name, value in arguments.items():
        if name != "out_dim" or not inferred.learned_variance:
            assert getattr(inferred, name) == value, name
    assert list_shapes(**{name: getattr(inferred, name) for name in ARGUMENTS}) == shapes


# What GaussianDiffusion saves beside the network's weights.
BUFFERS = [
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "loss_weight",
]


def make_trainer_file(weights):
    """Make what its Trainer saves: the wrapped network, its average, and another copy."""
    wrapped = {name: np.zeros(10, np.float32) for name in BUFFERS}
    wrapped |= {f"model.{name}": array for name, array in weights.items()}
    ema = {"initted": np.array(True), "step": np.array(7)}
    ema |= {f"online_model.{name}": array for name, array in wrapped.items()}
    ema |= {f"ema_model.{name}": 2 * array for name, array in wrapped.items()}
    return {
        "step": 3000,
        "model": wrapped,
        "opt": {"state": {}, "param_groups": []},
        "ema": ema,
        "scaler": None,
        "version": "2.3.4",
    }


FILES = {
    "bare": lambda file, weights: (weights, 1),
    "the average of a trainer": lambda file, weights: (file, 2),
    "the average alone": lambda file, weights: (file["ema"], 2),
    "the network alone": lambda file, weights: (file["model"], 1),
    "the network without its prefix": lambda file, weights: (
        {name.removeprefix("model."): array for name, array in file["model"].items()},
        1,
    ),
    "distributed": lambda file, weights: ({f"module.{n}": a for n, a in file["model"].items()}, 1),
    "ElucidatedDiffusion": lambda file, weights: ({f"net.{n}": a for n, a in weights.items()}, 1),
}


@pytest.mark.parametrize("kind", FILES)
def test_wrappers_and_trainer_files_are_understood(kind):
    weights = load_recorded("unet_learned_variance")[3]
    given, times = FILES[kind](make_trainer_file(weights), weights)
    expected = {name: times * array for name, array in weights.items()}
    assert_same_bits(find_network(given, PEER).tensors, expected)


def test_arguments_of_the_process_are_ignored():
    config, _, _, weights = load_recorded("unet_learned_variance")
    given = make_trainer_file(weights) | {"ema": None}
    network = from_torch(given, "lucidrains", config | {"image_size": 12, "objective": "pred_v"})
    assert_same_bits(to_torch_names(network), weights)


WRONG = [
    ({"dim": 16}, {}, "does not fit"),
    ({"self_condition": True}, {}, "does not fit"),
    ({"learned_variance": False}, {}, "does not fit"),
    ({"full_attn": [True, True]}, {}, "does not fit"),
    ({"attn_heads": [4]}, {}, "attn-heads is .4,., but it must be"),
    ({"attn_dim_head": [32, 0]}, {}, "attn-dim-head"),
    ({"full_attn": [True]}, {}, "full-attn"),
    ({"dim": 7}, {}, "dim is 7, but it must be even"),
    ({"dim_mults": []}, {}, "dim-mults"),
    ({"dropout": 1}, {}, "dropout is 1"),
    ({"sinusoidal_pos_emb_theta": 0}, {}, "theta is 0"),
    ({"learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 3}, {}, "dim is 3"),
    ({"out_dim": 0}, {}, "out-dim is 0"),
    ({"learned_variances": True}, {}, "did you mean 'learned_variance'"),
    ({}, {"init_conv.weight": None}, "there is no init_conv.weight"),
    ({}, {"mid_attn.mem_kv": None}, "the weights lack mid.attn_1.mem_kv"),
    ({}, {"extra.weight": np.ones(3)}, "extra.weight .* does not fit"),
    ({}, {"downs.0.0.block1.norm.weight": np.ones(8)}, "does not fit"),
]


@pytest.mark.parametrize(("arguments", "tensors", "sentence"), WRONG)
def test_mistakes_get_one_sentence(arguments, tensors, sentence):
    config, _, _, weights = load_recorded("unet_learned_variance")
    weights = {name: a for name, a in (weights | tensors).items() if a is not None}
    with pytest.raises(UserError, match=sentence):
        from_torch(weights, "lucidrains", config | arguments)
