"""Every network leaves with all of its settings, None included, or is refused."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_ddpm import runs
from jax_ddpm.config.run import Config, DiffusionConfig
from jax_ddpm.errors import UserError
from jax_ddpm.interop import from_torch
from jax_ddpm.jobs.export import export_weights
from jax_ddpm.jobs.translate import fill_channels, find_translation, translate
from jax_ddpm.models import (
    AnnotatedConfig,
    AnnotatedWSConfig,
    GuidedDiffusionConfig,
    ImprovedDiffusionConfig,
    LucidrainsConfig,
    PulferConfig,
    UNet2DConfig,
    UNetConfig,
    make_network,
)

UNET = UNetConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, num_groups=4)
UNET2D = UNet2DConfig(
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
)
GOOGLES = replace(
    UNET2D,
    freq_shift=1,
    flip_sin_to_cos=False,
    downsample_padding=0,
    attention_head_dim=None,
    norm_eps=1e-6,
)
OWN = {  # the implementation that each network comes from
    "torch_ref": UNET,
    "diffusers": UNET2D,
    "annotated": AnnotatedConfig(dim=8, dim_mults=(1, 2)),
    "annotated_layernorm": AnnotatedConfig(dim=8, dim_mults=(1, 2), norm="layer"),
    "annotated_ws": AnnotatedWSConfig(dim=8, dim_mults=(1, 2)),
    "guided_diffusion": GuidedDiffusionConfig(model_channels=32, channel_mult=(1.0, 2.0)),
    "improved_diffusion": ImprovedDiffusionConfig(model_channels=32, channel_mult=(1.0, 2.0)),
    "lucidrains": LucidrainsConfig(dim=8, dim_mults=(1, 2)),
    "pulfer": PulferConfig(),
}


def make_run(config, side=16, variance="fixed"):
    channels = 1 if isinstance(config, PulferConfig) else 3
    settings = Config(model=config, diffusion=DiffusionConfig(variance=variance))
    return runs.Run(Path("a-run"), settings, (side, side, channels))


def make_params(run):
    channels = run.image_shape[-1] * (1 if run.config.diffusion.variance == "fixed" else 2)
    network = make_network(run.config.model, run.image_shape, out_channels=channels)
    shapes, numbers = jax.eval_shape(network.init, jax.random.key(0)), np.random.default_rng(0)
    return jax.tree.map(lambda leaf: numbers.normal(size=leaf.shape).astype(np.float32), shapes)


def send(run, source):
    """Translate a run's weights and read them with the arguments, as JSON has them."""
    params = make_params(run)
    found = translate(run, params, source)
    network = from_torch(found.state_dict, source, json.loads(json.dumps(found.arguments)))
    assert jax.tree.structure(network.params) == jax.tree.structure(params)
    for ours, theirs in zip(*map(jax.tree.leaves, (params, network.params)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return network.config, found.arguments


FIRST = ("torch_ref", "diffusers")


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", [pytest.param(n, marks=[] if n in FIRST else pytest.mark.slow) for n in OWN]
)
def test_a_network_survives_with_every_setting_that_is_none(source):
    run = make_run(OWN[source], side=28 if source == "pulfer" else 16)
    back, _ = send(run, source)
    filled = fill_channels(run)
    if isinstance(filled, UNet2DConfig):
        filled = replace(filled, sample_size=16)
    assert back == filled


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize(
    "changes",
    [
        {"attention_head_dim": None},
        {"attn_norm_num_groups": 2, "num_class_embeds": 5},
        {"time_embedding_dim": 16, "mid_block_type": None},
        {"downsample_type": None, "upsample_type": None},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_none_of_unet2d_survives(changes):
    config = replace(UNET2D, **changes)
    back, arguments = send(make_run(config), "diffusers")
    expected = replace(config, in_channels=3, out_channels=3, sample_size=16)
    assert back == expected
    for name, value in changes.items():
        assert arguments[name] == value


@pytest.mark.slow
@pytest.mark.parametrize("source", ["diffusers", "guided_diffusion", "annotated"])
def test_a_learned_variance_doubles_the_channels_that_leave(source):
    back, _ = send(make_run(OWN[source], variance="learned_range"), source)
    assert (getattr(back, "out_channels", None) or getattr(back, "out_dim", None)) == 6


@pytest.mark.slow
@pytest.mark.guard
def test_hos_network_leaves_as_unet2d_and_googles_as_hos():
    back, arguments = send(make_run(UNET), "diffusers")
    assert back == replace(
        GOOGLES, in_channels=3, out_channels=3, sample_size=16, dropout=UNET.dropout
    )
    assert arguments["attention_head_dim"] is None
    back, _ = send(make_run(GOOGLES), "torch_ref")
    assert back == replace(UNET, in_channels=3, out_channels=3, dropout=0.0)


def test_hos_own_arguments_are_written():
    config = UNetConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1)
    _, arguments = send(make_run(config), "ho")
    assert arguments == {
        "ch": 32,
        "out_ch": 3,
        "ch_mult": (1, 2),
        "num_res_blocks": 1,
        "attn_resolutions": (8,),
        "num_classes": 1,
        "dropout": 0.1,
        "resamp_with_conv": True,
    }


def test_classes_of_hos_network_leave_under_the_name_of_diffusers():
    run = make_run(replace(UNET, num_classes=5))
    names = translate(run, make_params(run), "diffusers").state_dict
    assert names["class_embedding.weight"].shape == (5, 32)


@pytest.mark.parametrize(
    ("config", "side", "source", "reason"),
    [
        (UNET, 15, "diffusers", "pads images of 15x15 inside to multiples of 2"),
        (UNET2D, 16, "torch_ref", "other settings than google's"),
        (replace(GOOGLES, time_embedding_dim=16), 16, "torch_ref", "other settings"),
        (UNET, 16, "ho", "--model.num-groups is 32"),
        (UNET, 16, "lucidrains", "its network is lucidrains, and the run's is unet"),
    ],
)
def test_a_network_that_another_implementation_does_not_have_is_refused(
    config, side, source, reason
):
    run = make_run(config, side)
    with pytest.raises(UserError, match=rf"does not have the network of a-run: .*({reason})"):
        find_translation(run, make_params(run), [source])


def test_the_arguments_never_replace_the_configuration_of_a_run(trained_run):
    before = (trained_run / "config.json").read_text()
    with pytest.raises(UserError, match=r"would replace .*config.json, the configuration of a run"):
        export_weights(trained_run, trained_run / "config.npz")
    assert (trained_run / "config.json").read_text() == before
    assert not (trained_run / "config.npz").exists()
