"""Output and gradients of the U-Net, block by block and whole: jax_ddpm against torch_ref."""

import re
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, from_state_dict, from_torch, to_state_dict
from jax_ddpm.interop import to_torch as to_torch_names
from jax_ddpm.models import UNetConfig, layers, parameter_shapes
from jax_ddpm.models.layers import MLP, GroupNorm
from jax_ddpm.models.unet import ResnetBlock, SelfAttention
from parity_tests.comparing import (
    DOUBLE_FIRST,
    QUICK,
    convert_tree,
    draws,
    make_twin_networks,
    to_jax,
    to_torch,
)
from torch_ref.unet import UNet as TorchUNet
from torch_ref.unet import timestep_embedding

THEIRS = "torch_ref"


def compute_gradients(apply, *args):
    """Compute the output of `apply`, and the gradients of its mean square for all `args`."""

    def mean_square(args):
        out = apply(*args)
        return (out**2).mean(), out

    gradient = jax.jit(jax.value_and_grad(mean_square, has_aux=True), compiler_options=QUICK)
    (_, out), grads = gradient(args)
    return out, grads


def compute_torch_gradients(module, *args):
    """Compute the same in torch: output, gradients of arguments, gradients by parameter name."""
    args = [arg.clone().requires_grad_() for arg in args]
    module.zero_grad()
    out = module(*args)
    (out**2).mean().backward()
    named = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return out, [arg.grad for arg in args], named


def check_block(compare, what, dtype, module, params, theirs, *args):
    def apply(params, *args):
        return module.apply({"params": params}, *args)

    out, (grad_params, *grad_args) = compute_gradients(apply, params, *args)
    ref_out, ref_args, ref_params = compute_torch_gradients(theirs, *map(to_torch, args))
    compare(what, out, to_jax(ref_out), dtype)
    compare(f"{what}: gradients", grad_args, [to_jax(g) for g in ref_args], dtype)
    arrays = {name: g.numpy() for name, g in ref_params.items()}
    expected = from_state_dict(arrays, PEERS["torch_ref"], params)
    compare(f"{what}: gradients", grad_params, expected, dtype)


@pytest.fixture(scope="module")
def twins():
    """One pair of networks per precision."""
    return {dtype: make_twin_networks(dtype) for dtype in ("float64", "float32")}


@pytest.mark.parametrize("dim", [2 * 8, 32])
def test_timestep_embedding(compare, dtype, dim):
    t = np.array([0, 1, 17, 999])
    ours = layers.timestep_embedding(jnp.asarray(t), dim, dtype)
    theirs = timestep_embedding(torch.from_numpy(t), dim, getattr(torch, dtype))
    compare("timestep embedding", ours, theirs.numpy(), dtype)


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
def test_time_embedding_layers(compare, dtype, twins):
    theirs, _, params = twins[dtype]
    t = np.array([0, 500, 999])
    waves = layers.timestep_embedding(jnp.asarray(t), 8, dtype)
    ours = MLP(32, jax.nn.silu, dtype).apply({"params": params["temb"]}, waves)
    first, second = theirs.temb["dense"]
    embedding = timestep_embedding(torch.from_numpy(t), 8, getattr(torch, dtype))
    expected = second(torch.nn.functional.silu(first(embedding)))
    compare("time embedding", ours, to_jax(expected), dtype)


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
def test_group_norm(compare, dtype):
    theirs = torch.nn.GroupNorm(4, 16, eps=1e-6, dtype=getattr(torch, dtype))
    scale, bias = draws((16,), dtype, 0), draws((16,), dtype, 1)
    theirs.load_state_dict({"weight": to_torch(scale), "bias": to_torch(bias)})
    x = 3 + draws((2, 5, 6, 16), dtype, 2)  # a mean far from 0, where cancellation would show
    params = {"scale": scale, "bias": bias}
    check_block(compare, "group norm", dtype, GroupNorm(4, dtype), params, theirs, x)


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize(("path", "channels"), [("down_0/block_0", 8), ("up_1/block_0", 32)])
def test_resnet_block(compare, dtype, twins, path, channels):
    """Without a shortcut (equal channels) and with one."""
    theirs, _, params = twins[dtype]
    level, block = path.split("/")
    side, i = level.split("_")
    module = ResnetBlock(8 if i == "0" else 16, 0.0, 4, dtype)
    x, temb = draws((2, 4, 4, channels), dtype, 0), draws((2, 32), dtype, 1)
    reference = getattr(theirs, side)[int(i)].block[int(block[-1])]
    check_block(compare, "ResNet block", dtype, module, params[level][block], reference, x, temb)


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
def test_attention(compare, dtype, twins):
    theirs, _, params = twins[dtype]
    x = draws((2, 3, 4, 16), dtype, 0)
    block = SelfAttention(4, dtype)
    check_block(
        compare, "attention block", dtype, block, params["mid"]["attn_1"], theirs.mid["attn_1"], x
    )


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize("layer", ["downsample", "upsample"])
def test_resampling(compare, dtype, twins, layer):
    theirs, _, params = twins[dtype]
    if layer == "downsample":
        reference = torch.nn.Sequential(torch.nn.ZeroPad2d((0, 1, 0, 1)), theirs.down[0].downsample)
        x, weights = draws((2, 6, 4, 8), dtype, 0), params["down_0"]
        settings = {"stride": 2, "padding": (0, 1)}
    else:
        reference = torch.nn.Sequential(torch.nn.Upsample(scale_factor=2), theirs.up[1].upsample)
        x, weights, settings = draws((2, 3, 4, 16), dtype, 0), params["up_1"], {}

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = layers.upsample_nearest(x) if layer == "upsample" else x
            return layers.conv(x, x.shape[-1], 3, layer, dtype, **settings)

    ours = Layer().apply({"params": {layer: weights[layer]}}, jnp.asarray(x))
    compare("down- and upsampling", ours, to_jax(reference(to_torch(x))), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8), pytest.param((7, 9), marks=pytest.mark.slow)])
def test_network_that_averages_and_repeats_pixels(compare, size):
    theirs, network, params = make_twin_networks("float64", resamp_with_conv=False)
    assert "downsample" not in params["down_0"]
    x, t = draws((2, *size, 3), "float64", 3), np.array([3, 977])
    with torch.no_grad():
        expected = theirs(to_torch(x), torch.from_numpy(t))
    compare(
        "U-Net",
        network.apply_fn(params, jnp.asarray(x), jnp.asarray(t)),
        to_jax(expected),
        "float64",
    )


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize("size", [(8, 8), pytest.param((7, 9), marks=pytest.mark.slow)])
def test_whole_network(compare, dtype, twins, size):
    """Images of (7, 9) are padded to (8, 10) inside, and the output is cropped."""
    theirs, network, params = twins[dtype]
    x, t = draws((2, *size, 3), dtype, 3), np.array([3, 977])

    def apply(params, x):
        return network.apply_fn(params, x, jnp.asarray(t))

    out, (grad_params, grad_x) = compute_gradients(apply, params, x)
    model = theirs.requires_grad_()
    ref_out, (ref_grad_x,), ref_params = compute_torch_gradients(
        _At(model, torch.from_numpy(t)), to_torch(x)
    )
    named = {name.removeprefix("model."): grad for name, grad in ref_params.items()}
    compare("U-Net", out, to_jax(ref_out), dtype)
    compare("U-Net: gradients", grad_x, to_jax(ref_grad_x), dtype)
    compare("U-Net: gradients", grad_params, convert_tree(named, network), dtype)


@pytest.mark.slow
def test_network_with_classes(compare, dtype):
    theirs, network, params = make_twin_networks(
        dtype, channel_mult=(1,), attn_levels=(), num_classes=5
    )
    x, t, label = draws((3, 4, 4, 3), dtype, 3), np.array([3, 977, 3]), np.array([4, 0, 2])

    def apply(params, x):
        return network.apply_fn(params, x, jnp.asarray(t), label=jnp.asarray(label))

    out, (grad_params, _) = compute_gradients(apply, params, x)
    model = _At(theirs.requires_grad_(), torch.from_numpy(t), torch.from_numpy(label))
    ref_out, _, ref_params = compute_torch_gradients(model, to_torch(x))
    named = {name.removeprefix("model."): grad for name, grad in ref_params.items()}
    assert params["label_emb"]["embedding"].shape == (5, 32)
    compare("U-Net", out, to_jax(ref_out), dtype)
    compare("U-Net: gradients", grad_params, convert_tree(named, network), dtype)


PORTED = {"shortcut": "nin_shortcut", "downsample": "downsample.conv", "upsample": "upsample.conv"}
ARGUMENTS = {
    "ch": 32,
    "out_ch": 1,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [4],
    "in_channels": 1,
    "resolution": 8,
    "dropout": 0.1,
    "num_classes": 1,
}


def port(tensors):
    """Rename torch_ref's tensors as in pesser's port of the original code."""
    pattern = re.compile(r"\b(" + "|".join(PORTED) + r")\b")
    return {pattern.sub(lambda m: PORTED[m[1]], name): array for name, array in tensors.items()}


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize("resamp_with_conv", [True, False])
def test_the_port_of_the_original_code(compare, resamp_with_conv):
    kind = {"channel_mult": (1, 2), "num_res_blocks": 1, "resamp_with_conv": resamp_with_conv}
    theirs = TorchUNet(1, 1, 32, attn_levels=(1,), dropout=0.1, **kind).double().eval()
    weights = port({name: p.detach().numpy() for name, p in theirs.named_parameters()})
    saved = [{f"module.{name}": 2 * array for name, array in weights.items()}, {}, 3, 40, weights]
    arguments = ARGUMENTS | {"resamp_with_conv": resamp_with_conv}
    network = from_torch(saved, "pesser", arguments)
    assert network.config == UNetConfig(32, attn_levels=(1,), in_channels=1, out_channels=1, **kind)
    assert from_torch(weights, "pesser").config == network.config
    assert network.origin == "the average at ema"
    assert weights.keys() >= {"down.1.block.0.nin_shortcut.weight", "mid.attn_1.proj_out.bias"}
    assert ("down.0.downsample.conv.weight" in weights) == resamp_with_conv
    back = to_torch_names(network)
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[name], array) for name, array in weights.items())
    x, t = draws((2, 8, 8, 1), "float64", 3), np.array([3, 977])
    with torch.no_grad():
        expected = theirs(to_torch(x), torch.from_numpy(t))
    compare("U-Net", network.apply(network.params, x, t), to_jax(expected), "float64")


def test_the_port_contradicting_its_weights_or_under_other_names_is_refused():
    theirs = TorchUNet(1, 1, 32, (1,), 1, ())
    weights = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    with pytest.raises(
        UserError, match=r"--source is pesser, but .*\.shortcut.weight are those of torch_ref"
    ):
        from_torch(weights, "pesser")
    with pytest.raises(UserError, match="does not fit"):
        from_torch(port(weights), "pesser", {"ch": 64})


@pytest.mark.parametrize("resamp_with_conv", [True, False])
def test_the_original_variables_tell_how_the_resolution_changes(resamp_with_conv):
    config = UNetConfig(32, (1, 1), 1, (), in_channels=1, out_channels=1)
    config = replace(config, resamp_with_conv=resamp_with_conv)
    shapes = parameter_shapes(config)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    assert from_torch(to_state_dict(params, PEERS["ho"]), "ho").config == config


class _At(torch.nn.Module):
    """A network at fixed timesteps, and labels."""

    def __init__(self, model, t, *label):
        super().__init__()
        self.model, self.given = model, (t, *label)

    def forward(self, x):
        return self.model(x, *self.given)


def test_the_cifar10_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        theirs = sum(p.numel() for p in TorchUNet().parameters())
    shapes = parameter_shapes(UNetConfig())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == theirs == 35_746_307
