"""The names of tensors tell who wrote them, or the sentence lists those who may have."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_ddpm.cli import convert as command
from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, from_torch, to_state_dict
from jax_ddpm.interop.files import write_weights
from jax_ddpm.interop.recognise import SIGNATURES, choose_peer, recognise
from jax_ddpm.interop.source import Source
from jax_ddpm.models import (
    AnnotatedConfig,
    AnnotatedWSConfig,
    GuidedDiffusionConfig,
    ImprovedDiffusionConfig,
    LucidrainsConfig,
    PulferConfig,
    UNet2DConfig,
    UNetConfig,
    parameter_shapes,
)

UNET = UNetConfig(channels=32, channel_mult=(1, 1), num_res_blocks=1, in_channels=1, out_channels=1)
OPENAI = {"model_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "in_channels": 3}
ANNOTATED = AnnotatedConfig(dim=8, dim_mults=(1, 2), channels=3)
CONFIGS = {
    "torch_ref": UNET,
    "ho": UNET,
    "pesser": replace(UNET, resamp_with_conv=False),
    "diffusers": UNet2DConfig(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
        in_channels=3,
        out_channels=3,
    ),
    "monai": UNet2DConfig(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        in_channels=3,
        out_channels=3,
    ),
    "guided_diffusion": GuidedDiffusionConfig(**OPENAI, resblock_updown=True),
    "improved_diffusion": ImprovedDiffusionConfig(**OPENAI),
    "lucidrains": LucidrainsConfig(dim=8, dim_mults=(1, 2), channels=3),
    "pulfer": PulferConfig(n_steps=5),
    "annotated": ANNOTATED,
    "annotated_layernorm": replace(ANNOTATED, norm="layer"),
    "annotated_ws": AnnotatedWSConfig(dim=8, dim_mults=(1, 2), channels=3),
    "epita": replace(ANNOTATED, use_convnext=False),
}
SAME_NAMES = (("annotated", "epita"), ("guided_diffusion", "improved_diffusion"))


def make_state_dict(peer, prefix=""):
    config = CONFIGS[peer]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "f4"), parameter_shapes(config))
    return {prefix + name: array for name, array in to_state_dict(params, PEERS[peer]).items()}


def recognise_tensors(tensors, arguments=None):
    documents = {} if arguments is None else {"w.json": arguments}
    return recognise(Source(None, tensors, documents, "w.json" if documents else None))


def test_every_implementation_has_a_signature():
    assert SIGNATURES.keys() == PEERS.keys() == CONFIGS.keys()


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize("peer", CONFIGS)
def test_an_implementation_is_recognised_behind_any_prefix(peer):
    expected = next((list(group) for group in SAME_NAMES if peer in group), [peer])
    if peer == "guided_diffusion":  # ResNet blocks that change the resolution
        expected = [peer]
    assert recognise_tensors(make_state_dict(peer)) == expected
    average = {"ema": make_state_dict(peer, "diffusion.model."), "opt": {"step": np.ones(1)}}
    assert recognise_tensors(average) == expected


def test_a_chain_around_the_network_tells_lucidrains_from_the_text_that_is_like_it():
    names = ("final_conv.1.weight", "downs.0.2.fn.norm.g", "downs.0.2.fn.fn.to_out.1.g")
    tensors = {f"denoise_fn.{name}": np.zeros(2) for name in names}
    assert recognise_tensors(tensors) == ["lucidrains", "annotated_layernorm"]
    chain = {"sqrt_recipm1_alphas_cumprod": np.zeros(2)}
    assert recognise_tensors(tensors | chain) == ["lucidrains"]


def test_flags_tell_what_names_do_not():
    tensors = make_state_dict("improved_diffusion")
    assert recognise_tensors(tensors, {"sigma_small": True}) == ["improved_diffusion"]
    assert recognise_tensors(tensors, {"num_head_channels": -1}) == ["guided_diffusion"]
    assert recognise_tensors({"a": np.ones(2)}, {"_class_name": "UNet2DModel"}) == ["diffusers"]


@pytest.mark.parametrize(
    ("tensors", "stated", "sentence"),
    [
        ({"a": np.ones(2)}, None, "--source is missing: a, ... are the names of no impl"),
        (
            make_state_dict("epita"),
            None,
            "--source is missing: .* those of annotated or epita, who",
        ),
        (make_state_dict("pulfer"), "ho", "--source is ho, but tensors .* b_mid.*of pulfer"),
    ],
)
def test_doubt_and_contradiction_are_one_sentence(tensors, stated, sentence):
    with pytest.raises(UserError, match=sentence):
        choose_peer(Source(None, tensors), stated)


def test_names_that_nobody_knows_are_left_to_the_stated_source():
    assert choose_peer(Source(None, {"a": np.ones(2)}), "pulfer") == "pulfer"


@pytest.mark.slow
def test_the_command_needs_no_source(tmp_path, capsys):
    write_weights(tmp_path / "w.npz", make_state_dict("pulfer", "network."))
    command.run([str(tmp_path / "w.npz"), "--out", str(tmp_path / "run")])
    assert "parameters of pulfer" in capsys.readouterr().out
    with pytest.raises(UserError, match="--source is ho, but tensors"):
        command.run([str(tmp_path / "w.npz"), "--source", "ho", "--out", str(tmp_path / "r")])


def make_diffusers(folder):
    """Write a U-Net's folder with its configuration, and a scheduler's beside it."""
    (folder / "unet").mkdir(parents=True)
    (folder / "scheduler").mkdir()
    config = CONFIGS["diffusers"]
    arguments = PEERS["diffusers"].list_arguments(config, (8, 8, 3)) | {"sample_size": 8}
    (folder / "unet" / "config.json").write_text(json.dumps(arguments))
    scheduler = {"_class_name": "DDPMScheduler", "prediction_type": "v_prediction"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    tensors = make_state_dict("diffusers")
    write_weights(folder / "unet" / "diffusion_pytorch_model.safetensors", tensors)
    return tensors, arguments


def test_from_torch_takes_what_the_command_takes(tmp_path):
    tensors, arguments = make_diffusers(tmp_path / "p")
    by_path = [from_torch(path) for path in (tmp_path / "p", str(tmp_path / "p" / "unet"))]
    for network in by_path:
        assert network.source == "diffusers"
        assert network.config.norm_num_groups == 4
        facts = {fact.what: fact for fact in network.facts}
        assert facts["data.image_size"].value == 8
        assert facts["diffusion.prediction_type"].value == "v"
        assert facts["diffusion.prediction_type"].origin == "scheduler/scheduler_config.json"
        assert facts["sample.num_steps"].origin == "assumed"
    in_memory = from_torch(tensors, config=arguments)
    assert in_memory.config == by_path[0].config
    assert {fact.what: fact.origin for fact in in_memory.facts} == {"data.image_size": "config"}


@pytest.mark.slow
@pytest.mark.guard
def test_from_torch_reads_arguments_from_a_file(tmp_path):
    write_weights(tmp_path / "w.npz", make_state_dict("torch_ref"))
    (tmp_path / "other.json").write_text('{"num_groups": 16}')
    assert from_torch(tmp_path / "w.npz", config=tmp_path / "other.json").config.num_groups == 16
    tensors = make_state_dict("torch_ref")
    assert from_torch(tensors, config=tmp_path / "other.json").config.num_groups == 16
    assert from_torch(tmp_path / "w.npz", config={"num_groups": 8}).config.num_groups == 8
    with pytest.raises(UserError, match="there is no file"):
        from_torch(Path(tmp_path / "nothing.npz"))
