"""diffusers' UNet2DModel: recorded numbers, its names, and the installed package beside ours."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D

from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, from_torch, to_state_dict, to_torch
from jax_ddpm.models import UNet2DConfig, make_network, parameter_shapes
from jax_ddpm.models.layers import downsample_mean
from jax_ddpm.models.unet2d_blocks import ResnetBlock
from parity_tests.comparing import GOLDENS, QUICK, SHORT, load_weights, nchw_to_nhwc, read_golden

THEIRS = "diffusers"
CASES = ["diffusers/unet_cifar_style", "diffusers/unet_class_scaleshift"]

# The configurations beside google's weights on the Hub, 32x32 and 256x256.
CIFAR10 = """{
  "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu",
  "attention_head_dim": null, "block_out_channels": [128, 256, 256, 256],
  "center_input_sample": false, "downsample_padding": 0, "flip_sin_to_cos": false, "freq_shift": 1,
  "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
  "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-06,
  "norm_num_groups": 32, "out_channels": 3, "sample_size": 32, "time_embedding_type": "positional",
  "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
}"""
LARGE = {
    **json.loads(CIFAR10),
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*4 * ["DownBlock2D"], "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *4 * ["UpBlock2D"]],
    "sample_size": 256,
}


def load_recorded(case):
    """Load (configuration, names of the rows of gradients, arrays, weights)."""
    manifest, io = read_golden(case)
    rows = manifest["config"].pop("grad_rows")
    return manifest["config"], rows, io, load_weights(GOLDENS / case)


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def read_label(io):
    return jnp.asarray(io["in.y"]) if "in.y" in io else None


@pytest.mark.parametrize("case", [pytest.param(CASES[0], marks=pytest.mark.slow), CASES[1]])
def test_recorded_output(compare, case):
    config, _, io, weights = load_recorded(case)
    network = from_torch(weights, "diffusers", config)
    x = jnp.asarray(nchw_to_nhwc(io["in.x"]), jnp.float64)
    params = cast(network.params, x.dtype)
    apply = jax.jit(network.apply, compiler_options=QUICK)
    out = apply(params, x, jnp.asarray(io["in.t"]), label=read_label(io))
    compare("U-Net", out, nchw_to_nhwc(io["f64.out"]), "float64")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_recorded_gradients(compare, dtype, case):
    config, rows, io, weights = load_recorded(case)
    network = from_torch(weights, "diffusers", config)
    x, target = (jnp.asarray(nchw_to_nhwc(io[name]), dtype) for name in ("in.x", "in.target"))
    params = cast(network.params, dtype)

    def loss_fn(params, x):
        out = network.apply(params, x, jnp.asarray(io["in.t"]), label=read_label(io))
        return ((out - target) ** 2).mean(), out

    gradient = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)
    (loss, out), (grads, grad_x) = jax.jit(gradient, compiler_options=QUICK)(params, x)
    theirs = {name[4:]: io[name] for name in io if name.startswith(SHORT[dtype])}
    compare("U-Net", out, nchw_to_nhwc(theirs["out"]), dtype)
    compare("U-Net", loss, theirs["loss"].astype(dtype).reshape(()), dtype)
    compare("U-Net: gradients", grad_x, nchw_to_nhwc(theirs["grad_x"]), dtype)
    grads, params = (to_state_dict(tree, PEERS["diffusers"]) for tree in (grads, params))
    assert grads.keys() == set(rows)
    pairs = [(grads[name], params[name]) for name in rows]
    ours = [(g.sum(), np.linalg.norm(g.ravel()), (g * p).sum()) for g, p in pairs]
    compare("U-Net: gradients", np.array(ours, dtype), theirs["param_grads"].astype(dtype), dtype)


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype and ours[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("case", CASES)
def test_a_round_trip_keeps_every_bit(case):
    config, _, _, weights = load_recorded(case)
    assert_same_bits(to_torch(from_torch(weights, "diffusers", config)), weights)


LEGACY = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("pointwise", [False, True], ids=["linear", "1x1 convolution"])
def test_old_names_become_new_ones(pointwise):
    config, _, _, weights = load_recorded(CASES[0])
    old = {}
    for name, array in weights.items():
        for new, legacy in LEGACY.items():
            if f".{new}." in name:
                name = name.replace(f".{new}.", f".{legacy}.")
                array = array[:, :, None, None] if pointwise and array.ndim == 2 else array
        old[name] = array
    assert old.keys() != weights.keys()
    assert_same_bits(to_torch(from_torch(old, "diffusers", config)), weights)


def test_the_earliest_names_of_blocks_are_understood():
    config, _, _, weights = load_recorded(CASES[0])
    old = {**config, "down_block_types": [f"UNetRes{kind}" for kind in config["down_block_types"]]}
    new = from_torch(weights, "diffusers", config)
    assert from_torch(weights, "diffusers", old).config == new.config


@pytest.mark.parametrize("case", CASES)
def test_shapes_reveal_what_they_can(case):
    config, _, _, weights = load_recorded(case)
    complete = from_torch(weights, "diffusers", config).config
    inferred = PEERS["diffusers"].infer({name: array.shape for name, array in weights.items()})
    assert len(inferred) >= 11
    fallback = {"time_embedding_dim": 4 * config["block_out_channels"][0]}
    for name, value in inferred.items():
        expected = getattr(complete, name)
        assert value == (fallback.get(name) if expected is None else expected), name
    needed = {name: config[name] for name in PEERS["diffusers"].unknowable}
    assert from_torch(weights, "diffusers", needed).params.keys() >= {"conv_in", "mid", "up_0"}


def test_weights_without_a_configuration_are_refused():
    weights = load_recorded(CASES[0])[3]
    with pytest.raises(UserError, match="shapes do not reveal attention_head_dim"):
        from_torch(weights, "diffusers")


WRONG = [
    ({"layers_per_block": 1}, {}, "does not fit"),
    ({"block_out_channels": [8, 16, 16, 32]}, {}, "does not fit"),
    ({"downsample_pading": 0}, {}, "did you mean 'downsample_padding'"),
    ({"down_block_types": ["DownBlock2D"] * 3}, {}, "must be 4 blocks"),
    (
        {"down_block_types": ["CrossAttnDownBlock2D"] + 3 * ["DownBlock2D"]},
        {},
        "down-block-types is 'Cross",
    ),
    ({"norm_num_groups": 16}, {}, "multiples of 16"),
    ({"norm_num_groups": None}, {}, "norm-num-groups is None"),
    ({"attention_head_dim": 32}, {}, "between 1 and 16"),
    ({"downsample_padding": 2}, {}, "0 or 1"),
    ({"act_fn": "tanh"}, {}, "act-fn is 'tanh'"),
    ({"resnet_time_scale_shift": "spatial"}, {}, "default or scale_shift"),
    ({"time_embedding_type": "learned"}, {}, "num-train-timesteps is None"),
    ({"class_embed_type": "projection"}, {}, "timestep or identity"),
    ({}, {"conv_in.weight": None}, "there is no conv_in.weight"),
    ({}, {"conv_out.bias": None}, "the weights lack conv_out.bias"),
    ({}, {"extra.weight": np.ones(3)}, "extra.weight .* does not fit"),
]


@pytest.mark.parametrize(("arguments", "tensors", "sentence"), WRONG)
def test_mistakes_get_one_sentence(arguments, tensors, sentence):
    config, _, _, weights = load_recorded(CASES[0])
    weights = {n: a for n, a in (weights | tensors).items() if a is not None}
    with pytest.raises(UserError, match=sentence):
        from_torch(weights, "diffusers", config | arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "count"),
    [
        (CIFAR10, 35_746_307),
        pytest.param(json.dumps(LARGE), 113_673_219, marks=pytest.mark.slow),
    ],
)
def test_googles_networks_have_the_published_number_of_parameters(text, count):
    with torch.device("meta"):
        theirs = UNet2DModel.from_config(json.loads(text))
    peer, arguments = PEERS["diffusers"], json.loads(text)
    assert sum(p.numel() for p in theirs.parameters()) == count
    config = peer.make_config(
        **{name: value for name, value in arguments.items() if name in peer.arguments}
    )
    config.check()
    assert sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(config))) == count


def draw_config(rng, family):
    """Draw arguments of a small UNet2DModel."""
    num_levels = rng.choice([1, 2, 2, 3])
    config = {
        "layers_per_block": rng.choice([1, 1, 2]),
        "act_fn": rng.choice(["silu", "gelu", "relu", "mish", "SWISH"]),
        "center_input_sample": rng.random() < 0.3,
        "time_embedding_type": rng.choice(["positional", "positional", "fourier", "learned"]),
        "time_embedding_dim": rng.choice([None, 20]),
        "num_train_timesteps": 50,
        "freq_shift": rng.choice([0, 1]),
        "flip_sin_to_cos": rng.random() < 0.5,
        "mid_block_type": rng.choice(["UNetMidBlock2D", "UNetMidBlock2D", None]),
        "mid_block_scale_factor": rng.choice([1, 1.5]),
        "add_attention": rng.random() < 0.7,
        "downsample_padding": rng.choice([0, 1]),
        "downsample_type": rng.choice(["conv", "resnet", None]),
        "upsample_type": rng.choice(["conv", "resnet", None]),
        "norm_eps": rng.choice([1e-5, 1e-6, 1e-2]),
        "resnet_time_scale_shift": rng.choice(["default", "scale_shift"]),
        "dropout": rng.choice([0.0, 0.1]),
        **rng.choice(
            [
                {},
                {"num_class_embeds": 7},
                {"class_embed_type": "timestep"},
                {"class_embed_type": "identity"},
            ]
        ),
    }
    return config | FAMILIES[family](rng, num_levels)


def draw_plain_blocks(rng, num_levels):
    groups = rng.choice([2, 4])
    down = ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "UNetResAttnDownBlock2D"]
    return {
        "block_out_channels": [groups * rng.choice([2, 3, 5]) for _ in range(num_levels)],
        "down_block_types": rng.choices(down, k=num_levels),
        "up_block_types": rng.choices(
            ["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"], k=num_levels
        ),
        "in_channels": rng.choice([1, 3, 4]),
        "out_channels": rng.choice([1, 3, 6]),
        "norm_num_groups": groups,
        "attn_norm_num_groups": rng.choice([None, groups]),
        "attention_head_dim": rng.choice([None, 2, 3, 4]),
    }


def draw_skip_blocks(rng, num_levels):
    """Skip blocks at the highest resolutions, other blocks below."""
    kinds = [rng.choice(["", "Attn"]) for _ in range(num_levels)]
    num_down, num_up = rng.randint(0, num_levels), rng.randint(1, num_levels)
    down = [f"{k}SkipDownBlock2D" if i < num_down else "DownBlock2D" for i, k in enumerate(kinds)]
    up = [f"{k}SkipUpBlock2D" if i < num_up else "AttnUpBlock2D" for i, k in enumerate(kinds)]
    only = num_down == num_up == num_levels
    return {
        "block_out_channels": rng.choices([32, 64], k=num_levels),
        "down_block_types": down,
        "up_block_types": up[::-1],
        "norm_num_groups": None if only else 8,
        "attention_head_dim": rng.choice([None, 8, 12]),
    }


def draw_k_blocks(rng, num_levels):
    return {
        "block_out_channels": rng.choices([32, 64], k=num_levels),
        "down_block_types": ["KDownBlock2D"] * num_levels,
        "up_block_types": ["KUpBlock2D"] * num_levels,
        "in_channels": rng.choice([1, 3]),
        "norm_num_groups": 8,
        "attention_head_dim": rng.choice([None, 8, 12]),
    }


FAMILIES = {"plain": draw_plain_blocks, "skip": draw_skip_blocks, "k": draw_k_blocks}


@pytest.fixture
def double(monkeypatch):
    """Make the casts to float32 in their code casts to float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def draw_inputs(config, rng, drawn):
    """Draw (x [b, c, h, w], t, label) for a network of this configuration."""
    multiple = 2 ** (len(config["block_out_channels"]) - 1)
    height, width = multiple * rng.choice([2, 3]), multiple * rng.choice([2, 4])
    x = drawn.standard_normal((2, config.get("in_channels", 3), height, width))
    learned = config["time_embedding_type"] == "learned"
    t = np.array([3, 41]) if learned else np.array([7.5, 901.0])
    label = None
    if config.get("class_embed_type") == "identity":
        width = config["time_embedding_dim"] or 4 * config["block_out_channels"][0]
        label = drawn.standard_normal((2, width))
    elif config.get("class_embed_type") == "timestep":
        label = np.array([2, 5]) if learned else np.array([2.5, 5.0])
    elif "num_class_embeds" in config:
        label = np.array([0, 6])
    return x, t, label


RUNS = [("plain", 47)]
SLOW_RUNS = [
    *[("plain", i) for i in [*range(5), 36]],
    *[("skip", i) for i in range(2)],
    *[("k", i) for i in range(2)],
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "seed"), RUNS + [pytest.param(*run, marks=pytest.mark.slow) for run in SLOW_RUNS]
)
def test_any_configuration_computes_what_theirs_computes(compare, double, family, seed):
    rng, drawn = random.Random(seed), np.random.default_rng(seed)
    config = draw_config(rng, family)
    theirs = UNet2DModel(**config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.from_numpy(drawn.standard_normal(parameter.shape)))
    weights = {name: tensor.numpy().copy() for name, tensor in theirs.state_dict().items()}
    network = from_torch(weights, "diffusers", config)
    assert_same_bits(to_torch(network), weights)

    x, t, label = draw_inputs(config, rng, drawn)
    with torch.no_grad():
        y = None if label is None else torch.from_numpy(label)
        expected = theirs(torch.from_numpy(x), torch.from_numpy(t), y).sample.numpy()
    label = None if label is None else jnp.asarray(label)
    apply = jax.jit(network.apply, compiler_options=QUICK)
    out = apply(network.params, jnp.asarray(nchw_to_nhwc(x)), t, label=label)
    compare("U-Net", out, nchw_to_nhwc(expected), "float64")


SMALL = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownBlock2D",) * 2,
    "up_block_types": ("UpBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_type": None,
}


def call(size=(4, 4), label=None, **arguments):
    network = make_network(UNet2DConfig(**SMALL, **arguments), (4, 4, 3))
    params = jax.eval_shape(network.init, jax.random.key(0))
    x, t = jnp.zeros((1, *size, 3)), jnp.zeros(1, jnp.int32)
    return jax.eval_shape(lambda p: network.apply_fn(p, x, t, label=label), params)


def test_labels_are_for_networks_with_classes():
    assert call(label=jnp.array([1]), num_class_embeds=3).shape == (1, 4, 4, 3)
    with pytest.raises(ValueError, match="no label is given"):
        call(num_class_embeds=3)
    with pytest.raises(ValueError, match="a label is given"):
        call(label=jnp.array([1]))


@pytest.mark.slow
def test_initial_parameters_are_distributed_as_in_diffusers():
    """Kernels and biases are uniform within 1/sqrt(fan_in)."""
    style = UNet2DConfig().style(jnp.float32)
    block = ResnetBlock(64, style)
    x, temb = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 8, 8, 32), (1, 128)))
    ours = block.lazy_init(jax.random.key(0), x, temb, None)["params"]
    theirs = ResnetBlock2D(in_channels=32, out_channels=64, temb_channels=128)
    layers = {
        "temb_proj": theirs.time_emb_proj,
        "conv1": theirs.conv1,
        "conv2": theirs.conv2,
        "shortcut": theirs.conv_shortcut,
    }
    for name, layer in layers.items():
        kernel, bias = np.asarray(ours[name]["kernel"]), np.asarray(ours[name]["bias"])
        assert kernel.std() == pytest.approx(layer.weight.std().item(), rel=0.1)
        assert np.abs(kernel).max() == pytest.approx(layer.weight.abs().max().item(), rel=0.02)
        assert np.abs(bias).max() == pytest.approx(layer.bias.abs().max().item(), rel=0.1)


def test_averaging_drops_an_odd_last_row_as_in_torch():
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 4))
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(x), 2).numpy()
    ours = downsample_mean(jnp.asarray(nchw_to_nhwc(x)))
    np.testing.assert_allclose(ours, nchw_to_nhwc(expected), rtol=0, atol=1e-15)
