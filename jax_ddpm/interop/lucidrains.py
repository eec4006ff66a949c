"""lucidrains' `denoising_diffusion_pytorch`: 0.7, 0.18, and 0.27 to 2.3."""

import re
from dataclasses import replace
from typing import Any

from jax_ddpm.errors import UserError
from jax_ddpm.interop.lucidrains_facts import describe
from jax_ddpm.interop.lucidrains_old import (
    CONVNEXT_NAMES,
    DEFAULT_GROUPS,
    RESNET_NAMES,
    V1_NAMES,
    infer_v0,
    infer_v1,
    is_v0,
    is_v1,
)
from jax_ddpm.interop.peer import Peer, Shapes, WeightLayout
from jax_ddpm.models import LucidrainsConfig, LucidrainsV0Config, LucidrainsV1Config
from jax_ddpm.models.architecture import Architecture

FAMILIES = {"v1": LucidrainsV1Config, "v2": LucidrainsConfig}


def infer_lucidrains(shapes: Shapes) -> dict[str, Any]:
    """Infer all arguments but `sinusoidal_pos_emb_theta`, which defaults to 10000.

    Some arguments of the older networks are guessed, too; see lucidrains_facts.py. The numbers of
    input and output channels are for `make_lucidrains_config` to interpret.
    """
    try:
        if is_v0(shapes):
            return infer_v0(shapes)
        return infer_v1(shapes) if is_v1(shapes) else _infer(shapes)
    except KeyError as error:
        raise UserError(f"there is no {error.args[0]}") from error


def _infer(shapes: Shapes) -> dict[str, Any]:
    if "downs.0.2.to_qkv.weight" in shapes and "downs.0.2.mem_kv" not in shapes:
        raise UserError("these are from release 1.8, which had another network")
    time_dim, _ = shapes["time_mlp.1.weight"]
    numbers = [int(match[1]) for name in shapes if (match := re.match(r"downs\.(\d+)\.", name))]
    stages = range(1 + max(numbers, default=-1))
    convs = (shapes.get(f"downs.{i}.3.1.weight") or shapes[f"downs.{i}.3.weight"] for i in stages)
    full = tuple(f"downs.{i}.2.to_out.weight" in shapes for i in stages)
    mem_kv = [shapes[f"downs.{i}.2.mem_kv"] for i in stages]
    found = {
        "dim": time_dim // 4,
        "init_dim": shapes["init_conv.weight"][0],
        "dim_mults": tuple(conv[0] * 4 // time_dim for conv in convs),
        "full_attn": full,
        "attn_heads": tuple(shape[1] for shape in mem_kv),
        "attn_dim_head": tuple(shape[3 if f else 2] for f, shape in zip(full, mem_kv, strict=True)),
        "input_channels": shapes["init_conv.weight"][1],
        "output_channels": shapes["final_conv.weight"][0],
    }
    if "downs.0.0.block1.norm.weight" in shapes:  # before 2.0
        found["resnet_block_groups"] = DEFAULT_GROUPS
    if frequencies := shapes.get("time_mlp.0.weights"):
        found |= {"learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 2 * frequencies[0]}
    return found


def make_lucidrains_config(*, family: str = "v2", **arguments: Any) -> Architecture:
    """Make the configuration, deriving arguments that are not given from the channels.

    These are channels, self_condition, learned_variance and out_dim. Self-conditioning doubles the
    input channels, a learned variance the output channels. If there are two readings, the simpler
    is chosen; if it is wrong, images have another number of channels and are refused.
    """
    if family == "v0":
        return LucidrainsV0Config(**arguments)
    return FAMILIES[family](**read_channels(**arguments))


def read_channels(*, input_channels: int, output_channels: int, **arguments: Any) -> dict[str, Any]:
    """Replace the numbers of channels by the arguments that explain them."""
    channels, self_condition = arguments.get("channels"), arguments.get("self_condition")
    if self_condition is None:
        halves = 2 if arguments.get("learned_variance") else 1
        plain = channels or output_channels // halves
        self_condition = input_channels == 2 * plain
    channels = channels or input_channels // (2 if self_condition else 1)
    arguments |= {"channels": channels, "self_condition": self_condition}
    if not arguments.keys() & {"learned_variance", "out_dim"}:
        arguments["learned_variance"] = output_channels == 2 * channels
        if output_channels not in (channels, 2 * channels):
            arguments["out_dim"] = output_channels
    return arguments


def choose_release(config: Architecture) -> Peer:
    """Choose the release whose names the weights of `config` have."""
    match config:
        case LucidrainsV1Config():
            return V1
        case LucidrainsV0Config():
            return CONVNEXT if config.blocks == "convnext" else RESNET
        case LucidrainsConfig() if config.resnet_block_groups is not None:
            return GROUP_NORM
    return LUCIDRAINS


LUCIDRAINS = Peer(
    make_config=make_lucidrains_config,
    arguments=(
        "dim",
        "init_dim",
        "out_dim",
        "dim_mults",
        "channels",
        "self_condition",
        "learned_variance",
        "learned_sinusoidal_cond",
        "random_fourier_features",
        "learned_sinusoidal_dim",
        "sinusoidal_pos_emb_theta",
        "dropout",
        "attn_dim_head",
        "attn_heads",
        "full_attn",
        "flash_attn",
        "resnet_block_groups",  # before 2.0
        "with_time_emb",  # before 0.12
        # Our own: what the names of older releases leave open.
        "downsampling",
        "cosine_attention",
        "full_mid_attention",
    ),
    infer=infer_lucidrains,
    describe=describe,
    release=choose_release,
    settable=("sinusoidal_pos_emb_theta", "resnet_block_groups"),
    preset="denoising-diffusion-pytorch",
    architecture=LucidrainsConfig,
    names=[
        ("init_conv", "conv_in"),
        ("time_mlp.0.weights", "temb.frequencies"),
        ("time_mlp.1", "temb.dense_0"),
        ("time_mlp.3", "temb.dense_1"),
        ("downs.{i}.0", "down_{i}.block_0"),
        ("downs.{i}.1", "down_{i}.block_1"),
        ("downs.{i}.2", "down_{i}.attn_1"),
        ("downs.{i}.3.1", "down_{i}.downsample"),  # after the pixels are regrouped
        ("downs.{i}.3", "down_{i}.conv"),
        ("mid_block1", "mid.block_1"),
        ("mid_attn", "mid.attn_1"),
        ("mid_block2", "mid.block_2"),
        ("ups.{-i}.0", "up_{i}.block_0"),
        ("ups.{-i}.1", "up_{i}.block_1"),
        ("ups.{-i}.2", "up_{i}.attn_1"),
        ("ups.{-i}.3.1", "up_{i}.upsample"),
        ("ups.{-i}.3", "up_{i}.conv"),
        ("final_res_block", "block_out"),
        ("final_conv", "conv_out"),
        ("mlp.1", "temb_proj"),
        ("block1.proj", "conv1"),
        ("block1.norm", "norm1"),
        ("block2.proj", "conv2"),
        ("block2.norm", "norm2"),
        ("res_conv", "shortcut"),
        ("to_qkv", "qkv"),
        ("to_out.0", "proj"),  # of linear attention, which ends in a norm
        ("to_out.1", "norm_out"),
        ("to_out", "proj_out"),
        ("g", "scale"),
    ],
    layouts={"g": "channels"},
    buffers=(  # of GaussianDiffusion
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
        "p2_loss_weight",  # before 1.5
    ),
)
# Releases 1.9 to 1.11: the norms of ResNet blocks are PyTorch's, whose names need no rule.
GROUP_NORM = replace(
    LUCIDRAINS,
    names=[
        ("norm.g", "norm.scale"),
        ("to_out.1.g", "norm_out.scale"),
        *(rule for rule in LUCIDRAINS.names if rule[0] != "g"),
    ],
)
V1 = replace(LUCIDRAINS, architecture=LucidrainsV1Config, names=V1_NAMES)
LAYERS: dict[str, WeightLayout] = {"g": "channels", "b": "channels"}
RESNET = replace(LUCIDRAINS, architecture=LucidrainsV0Config, names=RESNET_NAMES, layouts=LAYERS)
CONVNEXT = replace(RESNET, names=CONVNEXT_NAMES)
