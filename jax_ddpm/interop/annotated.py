"""The U-Nets of the Annotated Diffusion Model (a notebook and two texts) and of EPITA."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

from jax_ddpm.interop.peer import Peer, Shapes
from jax_ddpm.models import AnnotatedConfig, AnnotatedWSConfig

ARGUMENTS = (
    "dim",
    "init_dim",
    "out_dim",
    "dim_mults",
    "channels",
    "with_time_emb",
    "resnet_block_groups",
    "use_convnext",
    "convnext_mult",
)
WS_ARGUMENTS = (
    "dim",
    "init_dim",
    "out_dim",
    "dim_mults",
    "channels",
    "self_condition",
    "resnet_block_groups",
    "weight_standardization",  # our own: which of two published versions the weights belong to
)

SHARED = [
    ("init_conv", "conv_in"),
    ("time_mlp.1", "temb.dense_0"),
    ("time_mlp.3", "temb.dense_1"),
    ("mid_block{i}", "mid.block_{i}"),
    ("mid_attn.fn.fn.to_out", "mid.attn_1.proj_out"),
    ("mid_attn.fn", "mid.attn_1"),
    ("downs.{i}.2.fn", "down_{i}.attn_1"),
    ("ups.{i}.2.fn", "up_{-i}.attn_1"),
    ("fn.to_qkv", "qkv"),
    ("fn.to_out.0", "proj_out"),
    ("fn.to_out.1", "norm_out"),
    ("mlp.1", "temb_proj"),
    ("block{i}.proj", "conv{i}"),
    ("block{i}.norm", "norm{i}"),
    ("res_conv", "shortcut"),
]
BLOCKS = [("downs.{i}.{j}", "down_{i}.block_{j}"), ("ups.{i}.{j}", "up_{-i}.block_{j}")]
NAMES = [
    *SHARED,
    ("downs.{i}.3", "down_{i}.downsample"),
    ("ups.{i}.3", "up_{-i}.upsample"),
    *BLOCKS,
    ("ds_conv", "depthwise"),
    ("net.0", "norm_in"),
    ("net.1", "expand"),
    ("net.3", "norm_mid"),
    ("net.4", "project"),
    ("final_conv.0", "block_out"),
    ("final_conv.1", "conv_out"),
]
WS_NAMES = [
    *SHARED,
    ("downs.{i}.3.1", "down_{i}.downsample"),
    ("ups.{i}.3.1", "up_{-i}.upsample"),
    ("downs.{i}.3", "down_{i}.conv"),
    ("ups.{i}.3", "up_{-i}.conv"),
    *BLOCKS,
    ("final_res_block", "block_out"),
    ("final_conv", "conv_out"),
]
# The text's own LayerNorm calls scale and bias g and b; ResNet blocks use PyTorch's norms.
LAYER_NORMS = [
    (f"{theirs}.{short}", f"{ours}.{leaf}")
    for theirs, ours in {
        "mid_attn.fn.norm": "mid.attn_1.norm",
        "norm": "norm",
        "fn.to_out.1": "norm_out",
        "net.0": "norm_in",
        "net.3": "norm_mid",
    }.items()
    for short, leaf in {"g": "scale", "b": "bias"}.items()
]


def infer(shapes: Shapes) -> dict[str, Any]:
    """Infer all arguments but the number of groups, which does not matter for ConvNeXt blocks."""
    out_dim, dim = shapes["final_conv.1.weight"][:2]
    found = {
        "init_dim": shapes["init_conv.weight"][0],
        "channels": shapes["init_conv.weight"][1],
        "dim": dim,
        "out_dim": out_dim,
        "dim_mults": find_widths(shapes, r"downs\.(\d+)\.2\.fn\.fn\.to_out\.0\.weight", dim),
        "with_time_emb": "time_mlp.1.weight" in shapes,
        "use_convnext": "final_conv.0.ds_conv.weight" in shapes,
    }
    if found["use_convnext"]:
        found["convnext_mult"] = shapes["final_conv.0.net.1.weight"][0] // dim
        found["resnet_block_groups"] = AnnotatedConfig.resnet_block_groups
    return found


def infer_ws(shapes: Shapes) -> dict[str, Any]:
    """Infer all arguments but groups and weight standardisation, for `make_ws_config`."""
    out_dim, dim = shapes["final_conv.weight"][:2]
    return {
        "init_dim": shapes["init_conv.weight"][0],
        "in_channels": shapes["init_conv.weight"][1],
        "dim": dim,
        "out_dim": out_dim,
        "dim_mults": find_widths(shapes, r"downs\.(\d+)\.3(?:\.1)?\.weight", dim),
    }


def find_widths(shapes: Shapes, pattern: str, dim: int) -> tuple[int, ...]:
    """The output channels of tensors named like `pattern`, by stage, as multiples of `dim`."""
    sizes = {int(m[1]): s[0] for name, s in shapes.items() if (m := re.fullmatch(pattern, name))}
    return tuple(sizes[stage] // dim for stage in sorted(sizes))


def make_ws_config(
    *,
    in_channels: int,
    channels: int | None = None,
    self_condition: bool | None = None,
    **arguments: Any,
) -> AnnotatedWSConfig:
    """Make the configuration, deriving channels and self_condition from the input channels.

    in_channels is channels * (1 + self_condition). If neither is given, images are assumed to have
    as many channels as the output.
    """
    if self_condition is None:
        self_condition = in_channels == 2 * (channels or arguments["out_dim"])
    channels = channels or in_channels // (1 + self_condition)
    return AnnotatedWSConfig(channels=channels, self_condition=self_condition, **arguments)


ANNOTATED = Peer(
    make_config=AnnotatedConfig,
    arguments=ARGUMENTS,
    infer=infer,
    names=NAMES,
    preset="annotated-convnext",
    architecture=AnnotatedConfig,
    unknowable=("resnet_block_groups",),
)
ANNOTATED_LAYERNORM = Peer(
    make_config=partial(AnnotatedConfig, norm="layer"),
    arguments=ARGUMENTS,
    infer=infer,
    names=[*LAYER_NORMS, *NAMES],
    preset="annotated-convnext",
    architecture=AnnotatedConfig,
    layouts={"g": "channels", "b": "channels"},
    unknowable=("resnet_block_groups",),
)
ANNOTATED_WS = Peer(
    make_config=make_ws_config,
    arguments=WS_ARGUMENTS,
    infer=infer_ws,
    names=WS_NAMES,
    preset="annotated",
    architecture=AnnotatedWSConfig,
    unknowable=("resnet_block_groups", "weight_standardization"),
)
EPITA = replace(ANNOTATED, preset="epita")
