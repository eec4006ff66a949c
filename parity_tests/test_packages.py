"""What leaves for another implementation's own code, loaded by its network."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch

from jax_ddpm import runs
from jax_ddpm.cli import convert as command
from jax_ddpm.config.run import Config, DiffusionConfig, SampleConfig
from jax_ddpm.interop import PEERS, from_torch, to_state_dict
from jax_ddpm.interop.files import read_weights
from jax_ddpm.interop.network import Network
from jax_ddpm.jobs.convert import write_run
from jax_ddpm.models import (
    AnnotatedConfig,
    AnnotatedWSConfig,
    GuidedDiffusionConfig,
    ImprovedDiffusionConfig,
    PulferConfig,
    UNetConfig,
    make_network,
)
from parity_tests.comparing import QUICK, draws, to_jax, to_torch
from torch_ref.annotated import AnnotatedUNet
from torch_ref.annotated_ws import AnnotatedWSUNet
from torch_ref.openai import UNetModel
from torch_ref.pulfer import PulferUNet
from torch_ref.unet import UNet

THEIRS = "the peers' own code (twins)"
PORTED = {"nin_shortcut": "shortcut", "downsample.conv": "downsample", "upsample.conv": "upsample"}
ANNOTATED = AnnotatedConfig(dim=8, dim_mults=(1, 2))
HO = UNetConfig(32, (1, 2), 1, (1,), dropout=0.0)
FIXED_SMALL = SampleConfig(num_steps=20, variance="fixed_small", clip_x_0=False)
OPENAI = {"model_channels": 32, "num_res_blocks": 1, "num_heads": 2}
# name: (--to, network, shape of the images, settings of the process, sampler)
RUNS = {
    "pulfer": (
        "pulfer",
        PulferConfig(n_steps=30),
        (28, 28, 1),
        {},
        SampleConfig(num_steps=20, clip_x_0=False),
    ),
    "guided": (
        "openai",
        GuidedDiffusionConfig(
            **OPENAI, channel_mult=(1.0, 2.0), attention_resolutions=(2,), use_scale_shift_norm=True
        ),
        (8, 8, 3),
        {"schedule": "cosine", "variance": "learned_range", "objective": "hybrid"},
        SampleConfig(num_steps=20),
    ),
    "improved": (
        "openai",
        ImprovedDiffusionConfig(
            **OPENAI, channel_mult=(1, 2, 2, 2), attention_resolutions=(), num_classes=1000
        ),
        (32, 32, 3),
        {"schedule": "cosine", "rescale_timesteps": True, "prediction_type": "x_0"},
        SampleConfig(sampler="ddim", num_steps=5, spacing="leading"),
    ),
    "annotated": ("annotated", ANNOTATED, (8, 8, 3), {"schedule": "cosine_clipped"}, FIXED_SMALL),
    "annotated_layernorm": (
        "annotated",
        replace(ANNOTATED, norm="layer", use_convnext=False),
        (8, 8, 1),
        {"schedule": "sigmoid"},
        FIXED_SMALL,
    ),
    "annotated_ws": (
        "annotated",
        AnnotatedWSConfig(dim=8, dim_mults=(1, 2), weight_standardization="divide"),
        (8, 8, 3),
        {"schedule": "quadratic"},
        FIXED_SMALL,
    ),
    "pesser": ("pesser", HO, (8, 8, 3), {"schedule": "warmup10"}, SampleConfig(num_steps=20)),
    "ho": ("ho", HO, (8, 8, 3), {"schedule": "quadratic"}, SampleConfig(num_steps=20)),
}
GUARDS = ("pulfer", "guided")
each = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.guard if n in GUARDS else ()) for n in RUNS]
)


class MyDDPM(torch.nn.Module):
    """What the tutorial's script loads a state dict into."""

    def __init__(self, network, n_steps, min_beta, max_beta, image_chw):
        super().__init__()
        self.network, self.betas = network, torch.linspace(min_beta, max_beta, n_steps)
        self.image_chw = image_chw


def load_pulfer(folder, arguments):
    given = json.loads((folder / "ddpm.json").read_text())
    theirs = MyDDPM(PulferUNet(**arguments), **given)
    theirs.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    assert given["image_chw"] == [1, 28, 28]
    torch.testing.assert_close(theirs.betas, torch.linspace(1e-4, 0.02, 20))
    return theirs.network


def load_openai(folder, flags):
    """As create_model of their scripts builds it."""
    size, text = flags["image_size"], flags.get("channel_mult")
    mult = tuple(map(int, text.split(","))) if text else {32: (1, 2, 2, 2)}[size]
    theirs = UNetModel(
        in_channels=3,
        model_channels=flags["num_channels"],
        out_channels=6 if flags["learn_sigma"] else 3,
        num_res_blocks=flags["num_res_blocks"],
        attention_resolutions=[size // int(n) for n in flags["attention_resolutions"].split(",")],
        channel_mult=mult,
        num_classes=1000 if flags["class_cond"] else None,
        num_heads=flags["num_heads"],
        num_heads_upsample=flags["num_heads_upsample"],
        use_scale_shift_norm=flags["use_scale_shift_norm"],
        **{name: flags[name] for name in ("num_head_channels",) if name in flags},
    )
    return load(theirs, torch.load(folder / "model.pt", weights_only=True))


def load_annotated(name):
    make, more = {
        "annotated": (AnnotatedUNet, {}),
        "annotated_layernorm": (AnnotatedUNet, {"layer": True}),
        "annotated_ws": (AnnotatedWSUNet, {"divide": True}),
    }[name]

    def load_it(folder, arguments):
        theirs = make(**arguments, **more)
        return load(theirs, torch.load(folder / "model.pt", weights_only=True))

    return load_it


def load_port(folder, arguments):
    theirs = UNet(
        arguments["in_channels"],
        arguments["out_ch"],
        arguments["ch"],
        arguments["ch_mult"],
        arguments["num_res_blocks"],
        [i for i in (0, 1) if arguments["resolution"] // 2**i in arguments["attn_resolutions"]],
    )
    tensors = torch.load(folder / "model.pt", weights_only=True)
    renamed = {}
    for name, tensor in tensors.items():
        for part, ours in PORTED.items():
            name = name.replace(part, ours)
        renamed[name] = tensor
    return load(theirs, renamed)


def load(network, tensors):
    network.load_state_dict(tensors)  # strictly
    return network


LOADERS = {"pulfer": load_pulfer, "guided": load_openai, "improved": load_openai} | {
    **{name: load_annotated(name) for name in RUNS if name.startswith("annotated")},
    "pesser": load_port,
}


def make_run(folder, model, image_shape, diffusion, sample):
    channels = image_shape[-1] * (2 if "variance" in diffusion else 1)
    settings = Config(
        model=model, diffusion=DiffusionConfig(num_timesteps=20, **diffusion), sample=sample
    )
    network = make_network(model, image_shape, out_channels=channels)
    shapes, numbers = jax.eval_shape(network.init, jax.random.key(0)), np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: numbers.normal(0, 0.1, leaf.shape).astype(np.float32), shapes
    )
    write_run(runs.Run(folder, settings, image_shape), Network("torch_ref", model, params, None))
    return network, params


@pytest.mark.slow
@each
def test_their_network_loads_it_and_computes_the_same(compare, tmp_path, name):
    to, model, image_shape, diffusion, sample = RUNS[name]
    network, params = make_run(tmp_path / "run", model, image_shape, diffusion, sample)
    out = tmp_path / "out"
    command.run([str(tmp_path / "run"), "--to", to, "--out", str(out)])
    arguments = json.loads((out / "model.json").read_text())
    assert "model." in (out / "README.md").read_text()
    if name == "ho":  # in TensorFlow
        expected = to_state_dict(params, PEERS["ho"])
        found = read_weights(out / "model.npz")
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[key], expected[key]) for key in expected)
        return
    theirs = LOADERS[name](out, arguments).eval()
    x, t = draws((2, *image_shape), "float32", 3), np.array([3, 17])
    label = np.array([1, 999]) if model.takes_label else None
    given = (torch.from_numpy(t),) if label is None else (torch.from_numpy(t), torch.tensor(label))
    with torch.no_grad():
        expected = to_jax(theirs(to_torch(x), *given))
    apply = jax.jit(network.apply_fn, compiler_options=QUICK)
    ours = apply(params, x, t) if label is None else apply(params, x, t, label=label)
    compare("U-Net", ours, expected, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pulfer", "guided", "improved", "pesser"])
def test_what_leaves_comes_back_as_it_was(tmp_path, name):
    to, model, image_shape, diffusion, sample = RUNS[name]
    _, params = make_run(tmp_path / "run", model, image_shape, diffusion, sample)
    command.run([str(tmp_path / "run"), "--to", to, "--out", str(tmp_path / "out")])
    network = from_torch(tmp_path / "out" / "model.pt")
    for ours, theirs in zip(*map(jax.tree.leaves, (params, network.params)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    old = runs.load(tmp_path / "run").config
    for fact in network.facts:
        section, _, setting = fact.what.partition(".")
        if section in ("diffusion", "sample") and fact.origin == "model.json":
            expected = getattr(getattr(old, section), setting)
            if setting == "respacing":
                expected = fact.value  # in OpenAI's words
            if setting == "variance" and section == "sample" and sample.sampler == "ddim":
                continue
            assert fact.value == expected, fact
