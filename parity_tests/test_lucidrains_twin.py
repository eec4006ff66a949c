"""lucidrains' U-Net against its twin in torch_ref: its parts, and any configuration."""

import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_ddpm.interop import PEERS, from_state_dict, from_torch, to_state_dict
from jax_ddpm.models import LucidrainsConfig, make_network, parameter_shapes
from jax_ddpm.models.lucidrains import TimeEmbedding
from jax_ddpm.models.lucidrains_layers import FullAttention, LinearAttention, ResnetBlock, RMSNorm
from parity_tests.comparing import DOUBLE_FIRST, QUICK, draws, to_jax, to_torch
from torch_ref.lucidrains import LucidrainsUNet as TorchUNet

THEIRS = "torch_ref (lucidrains)"
PEER = PEERS["lucidrains"]
SMALL = {"dim": 8, "dim_mults": (1, 2), "attn_dim_head": 2, "attn_heads": 2}


def make_twin(seed=0, dtype="float64", **arguments):
    """torch_ref's network with random parameters, none of them zero or one."""
    theirs = TorchUNet(**arguments)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            fan_in = p[0].numel() if p.ndim == 4 and "mem_kv" not in name else 9
            p.copy_(torch.randn(p.shape, generator=generator) / fan_in**0.5)
            p += name.endswith(".g")
    return theirs.to(getattr(torch, dtype)).eval()


@functools.cache
def make_pair(dtype, **arguments):
    """The twin, and our parameters and configuration with its weights."""
    theirs = make_twin(dtype=dtype, **{**SMALL, **arguments})
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    network = from_torch(weights, "lucidrains", {**SMALL, **arguments})
    return theirs, network.params, network.config


def run(module, params, *args):
    """The output of `module`, compiled quickly."""
    return jax.jit(module.apply, compiler_options=QUICK)({"params": params}, *args)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"sinusoidal_pos_emb_theta": 77},
        {"random_fourier_features": True},
        {"learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 6},
    ],
    ids=str,
)
def test_time_embedding(compare, dtype, arguments):
    theirs, params, config = make_pair(dtype, **arguments)
    for t in (np.array([0, 1, 9]), np.array([-1.75, 0.5, 3.25], dtype)):
        ours = run(TimeEmbedding(config, jnp.dtype(dtype)), params["temb"], t)
        expected = theirs.time_mlp(torch.from_numpy(t).to(getattr(torch, dtype)))
        compare("time embedding", ours, expected.detach().numpy(), dtype)


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
def test_block(compare, dtype):
    """Without and with a shortcut."""
    theirs, params, _ = make_pair(dtype)
    temb = draws((2, 32), dtype, 1)
    for reference, ours, size in (
        (theirs.downs[1][0], params["down_1"]["block_0"], 8),
        (theirs.ups[0][0], params["up_1"]["block_0"], 24),
    ):
        x = draws((2, 3, 4, size), dtype, 0)
        module = ResnetBlock(reference.block1.proj.out_channels, 0.0, jnp.dtype(dtype))
        out = run(module, ours, x, temb, None)
        with torch.no_grad():
            expected = to_jax(reference(to_torch(x), torch.from_numpy(temb)))
        compare("ResNet block", out, expected, dtype)


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_attention(compare, dtype, full, flash):
    """With and without a fused kernel, also in double precision."""
    theirs, params, _ = make_pair(dtype, full_attn=(full, not full))
    kind, kwargs = (FullAttention, {"flash": flash}) if full else (LinearAttention, {})
    ours = kind(2, 2, jnp.dtype(dtype), **kwargs)
    x = draws((2, 3, 4, 8), dtype, 0)
    theirs = theirs.downs[0][2]
    out = run(ours, params["down_0"]["attn_1"], x) + x
    with torch.no_grad():
        compare("attention block", out, to_jax(theirs(to_torch(x))), dtype)


def test_the_norm_of_a_black_pixel_has_a_gradient():
    x = jnp.zeros((1, 2, 2, 3))
    norm = RMSNorm(jnp.float32)
    params = {"params": {"scale": jnp.ones(3)}}
    gradient = jax.jit(jax.grad(lambda x: norm.apply(params, x).sum()))(x)
    np.testing.assert_allclose(gradient, 1e12 * 3**0.5, rtol=1e-6)


def draw_arguments(rng):
    """Draw arguments of a small network."""
    levels = rng.choice([1, 2, 2, 3])

    def each(values, p=0.5):
        return tuple(rng.choices(values, k=levels)) if rng.random() < p else rng.choice(values)

    return {
        "dim": rng.choice([4, 6, 10]),
        "init_dim": rng.choice([None, 3, 8]),
        "out_dim": rng.choice([None, None, 1, 5]),
        "dim_mults": tuple(rng.choices([1, 2, 3], k=levels)),
        "channels": rng.choice([1, 3, 4]),
        "self_condition": rng.random() < 0.5,
        "learned_variance": rng.random() < 0.5,
        "learned_sinusoidal_cond": rng.random() < 0.3,
        "random_fourier_features": rng.random() < 0.3,
        "learned_sinusoidal_dim": rng.choice([2, 6]),
        "sinusoidal_pos_emb_theta": rng.choice([50, 10000]),
        "dropout": rng.choice([0.0, 0.5]),
        "attn_dim_head": each([1, 3, 8]),
        "attn_heads": each([1, 2, 3]),
        "full_attn": rng.choice([None, each([True, False], p=1), True, False]),
        "flash_attn": rng.random() < 0.5,
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_any_configuration_computes_what_the_twin_computes(compare, dtype, seed):
    rng = random.Random(seed)
    arguments = draw_arguments(rng)
    theirs = make_twin(seed, dtype, **arguments)
    weights = {name: tensor.numpy().copy() for name, tensor in theirs.state_dict().items()}
    network = from_torch(weights, "lucidrains", arguments)
    back = to_state_dict(network.params, PEER)
    assert {n: a.tobytes() for n, a in back.items()} == {n: a.tobytes() for n, a in weights.items()}
    side = 2 ** (len(arguments["dim_mults"]) - 1)
    shape = (2, side * rng.choice([1, 3]), side * rng.choice([2, 5]), arguments["channels"])
    x, guess = draws(shape, dtype, seed), draws(shape, dtype, seed + 100)
    t = np.array([rng.randrange(9), 3]) if seed % 2 else np.array([0.3, -2.5], dtype)
    conditioned = arguments["self_condition"] and rng.random() < 0.7
    sc = {"x_self_cond": jnp.asarray(guess)} if conditioned else {}

    def loss_fn(params, x):
        out = network.apply(params, x, t, **sc)
        return (out**2).mean(), out

    gradient = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)
    (_, out), (grads, grad_x) = jax.jit(gradient, compiler_options=QUICK)(network.params, x)
    x = to_torch(x).requires_grad_()
    expected = theirs(x, torch.from_numpy(t), to_torch(guess) if conditioned else None)
    (expected**2).mean().backward()
    compare("lucidrains' U-Net", out, to_jax(expected), dtype)
    compare("lucidrains' U-Net: gradients", grad_x, to_jax(x.grad), dtype)
    named = {
        n: torch.zeros_like(p) if p.grad is None else p.grad  # random frequencies have none
        for n, p in theirs.named_parameters()
    }
    named = {name: gradient.numpy().copy() for name, gradient in named.items()}
    theirs = from_state_dict(named, PEER, parameter_shapes(network.config))
    compare("lucidrains' U-Net: gradients", grads, theirs, dtype)


def trace_output_shape(shape=(4, 6, 3), **arguments):
    """The shape of the output for an image of `shape`; nothing is computed."""
    config = LucidrainsConfig(**{**SMALL, "dim_mults": (1,), **arguments})
    network = make_network(config, shape, out_channels=5)
    x, t = jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
    return jax.eval_shape(
        lambda key: network.apply_fn(network.init(key), x, t), jax.random.key(0)
    ).shape


def test_channels_follow_the_data_unless_given():
    assert trace_output_shape() == (1, 4, 6, 5)
    assert trace_output_shape(learned_variance=True, self_condition=True) == (1, 4, 6, 6)
    assert trace_output_shape(out_dim=2) == (1, 4, 6, 2)


def test_only_the_first_half_of_a_block_has_dropout():
    """If it drops everything, the output is the shortcut plus the second half applied to zeros."""
    theirs, params, _ = make_pair("float64")
    x, temb = draws((2, 4, 4, 8), "float64", 0), draws((2, 32), "float64", 1)
    keys = jax.random.split(jax.random.key(0), 2)
    module = ResnetBlock(8, 1 - 1e-12, jnp.float64)
    out = run(module, params["down_0"]["block_0"], x, temb, keys)
    half = theirs.downs[0][0].block2
    with torch.no_grad():
        rest = torch.nn.functional.silu(half.norm(half.proj.bias[None, :, None, None]))
    np.testing.assert_allclose(out, x + to_jax(rest), rtol=1e-12)


@pytest.mark.slow
def test_initial_parameters_are_distributed_as_in_lucidrains():
    """Kernels and biases uniform within 1/sqrt(fan_in); mem_kv and frequencies from N(0, 1)."""
    arguments = SMALL | {"dim": 24, "learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 64}
    network = make_network(LucidrainsConfig(**arguments), (4, 4, 3))
    ours = to_state_dict(network.init(jax.random.key(0)), PEER)
    theirs = {name: tensor.numpy() for name, tensor in TorchUNet(**arguments).state_dict().items()}
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].shape == array.shape
        if array.size >= 32:
            assert ours[name].std() == pytest.approx(
                array.std(), rel=0.5 if array.size < 800 else 0.1
            )
        if name.endswith(".g"):
            assert (ours[name] == 1).all()
