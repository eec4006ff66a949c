"""MONAI's DiffusionModelUNet for images: diffusers' UNet2DModel under other names."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jax_ddpm.errors import UserError
from jax_ddpm.interop.ho_as_unet2d import to_unet2d
from jax_ddpm.interop.peer import Peer, Shapes
from jax_ddpm.models import Architecture, UNet2DConfig
from jax_ddpm.models.architecture import ImageShape

ARGUMENTS = (
    "spatial_dims",
    "in_channels",
    "out_channels",
    "num_res_blocks",
    "channels",
    "attention_levels",
    "norm_num_groups",
    "norm_eps",
    "resblock_updown",
    "num_head_channels",
    "with_conditioning",
    "num_class_embeds",
    "include_fc",
    "use_combined_linear",
)
# What only other networks of theirs have: a part of a tensor's name -> what it is.
OTHER_NETWORKS = {
    ".transformer_blocks.": "cross-attention (with_conditioning)",
    ".attn.qkv.": "one projection for queries, keys and values (use_combined_linear)",
}


def infer(shapes: Shapes) -> dict[str, Any]:
    """Infer all arguments but the heads, the groups of the norms, and what is added in them."""
    for part, what in OTHER_NETWORKS.items():
        if any(part in name for name in shapes):
            raise UserError(f"it has {what}, which UNet2DModel does not have")
    first = _get(shapes, "conv_in.conv.weight")
    stages = range(1 + max(_find_numbers(shapes, r"down_blocks\.(\d+)\."), default=-1))
    attends = tuple(f"down_blocks.{i}.attentions.0.norm.weight" in shapes for i in stages)
    return {
        "spatial_dims": len(first) - 2,
        "in_channels": first[1],
        "out_channels": _get(shapes, "out.2.conv.weight")[0],
        "num_res_blocks": tuple(
            len(_find_numbers(shapes, rf"down_blocks\.{i}\.resnets\.(\d+)\.")) for i in stages
        ),
        "channels": tuple(
            _get(shapes, f"down_blocks.{i}.resnets.0.conv2.conv.weight")[0] for i in stages
        ),
        "attention_levels": attends,
        "resblock_updown": "down_blocks.0.downsampler.norm1.weight" in shapes,
        "num_class_embeds": shapes.get("class_embedding.weight", (None,))[0],
    }


def _get(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise UserError(f"there is no {name}")
    return shapes[name]


def _find_numbers(shapes: Shapes, pattern: str) -> set[int]:
    return {int(match[1]) for name in shapes if (match := re.match(pattern, name))}


def make_config(
    *,
    channels: tuple[int, ...],
    attention_levels: tuple[bool, ...],
    num_res_blocks: int | tuple[int, ...],
    num_head_channels: int | tuple[int, ...] = 8,
    resblock_updown: bool = False,
    norm_num_groups: int = 32,
    norm_eps: float = 1e-6,
    in_channels: int | None = None,
    out_channels: int | None = None,
    num_class_embeds: int | None = None,
    **others: Any,
) -> UNet2DConfig:
    """Make the configuration of the same UNet2DModel.

    Raises UserError for networks that UNet2DModel does not have.
    """
    _require_plain(others)
    blocks = {num_res_blocks} if isinstance(num_res_blocks, int) else set(num_res_blocks)
    if len(blocks) != 1:
        raise UserError(
            f"num_res_blocks is {num_res_blocks}, but UNet2DModel has the same number everywhere"
        )
    stages, by_resnet = range(len(channels)), resblock_updown  # the last does not downsample
    down = [_name_block("Down", attention_levels[i], by_resnet and i < stages[-1]) for i in stages]
    up = [_name_block("Up", attention_levels[i], by_resnet and i > 0) for i in reversed(stages)]
    resample: Any = "resnet" if resblock_updown and any(attention_levels) else "conv"
    return UNet2DConfig(
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=tuple(channels),
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        downsample_type=resample,
        upsample_type=resample,
        layers_per_block=blocks.pop(),
        attention_head_dim=_find_head_dim(channels, attention_levels, num_head_channels),
        norm_num_groups=norm_num_groups,
        norm_eps=norm_eps,
        num_class_embeds=num_class_embeds,
    )


def _require_plain(others: Mapping[str, Any]) -> None:
    """Raise UserError unless the arguments that UNet2DModel does not have are without effect."""
    expected = {
        "spatial_dims": 2,
        "with_conditioning": False,
        "include_fc": True,
        "use_combined_linear": False,
    }
    for name, value in expected.items():
        if others.get(name, value) != value:
            raise UserError(
                f"{name} is {others[name]}, but only networks with {name} {value} can be converted"
            )


def _name_block(way: str, attends: bool, by_resnet: bool) -> Any:
    if attends:
        return f"Attn{way}Block2D"
    return f"Resnet{way}sampleBlock2D" if by_resnet else f"{way}Block2D"


def _find_head_dim(
    channels: tuple[int, ...], attends: tuple[bool, ...], sizes: int | tuple[int, ...]
) -> int | None:
    """The channels of each head of UNet2DModel; None: one head everywhere."""
    widths, each = _list_attended(channels, attends, sizes)
    if each == widths:
        return None
    if len(set(each)) != 1:
        raise UserError(
            f"num_head_channels is {sizes}, but UNet2DModel has heads of one size, or one head"
        )
    return each[0]


def _list_attended(
    channels: tuple[int, ...], attends: tuple[bool, ...], sizes: int | tuple[int, ...]
) -> tuple[list[int], list[int]]:
    """The channels where there is attention, the lowest resolution included, and their heads."""
    each = (sizes,) * len(channels) if isinstance(sizes, int) else tuple(sizes)
    where = [i for i, attended in enumerate(attends) if attended] + [-1]
    return [channels[i] for i in where], [each[i] for i in where]


def to_monai(config: Architecture, image_shape: ImageShape) -> Architecture:
    """The same network, as `make_config` makes it; others stay what they are.

    Raises UserError for a UNet2DModel with settings that MONAI's network does not have.
    """
    config = to_unet2d(config, image_shape)
    if not isinstance(config, UNet2DConfig):
        return config
    theirs = make_config(**write_arguments(config, image_shape))
    kept: dict[str, Any] = {"compute_dtype": config.compute_dtype, "dropout": config.dropout}
    own: dict[str, Any] = {"sample_size": None, "downsample_type": theirs.downsample_type}
    own |= {"upsample_type": theirs.upsample_type, "attn_norm_num_groups": None}
    own |= {"attention_head_dim": theirs.attention_head_dim}
    own |= {"act_fn": "silu" if config.act_fn == "swish" else config.act_fn}
    found = replace(theirs, **kept)
    if config.time_embedding_dim == 4 * config.block_out_channels[0]:
        own["time_embedding_dim"] = None
    if found != replace(config, **own) or not _resamples_alike(config, theirs):
        raise UserError("this UNet2DModel has other settings than MONAI's network")
    return found


def _resamples_alike(config: UNet2DConfig, theirs: UNet2DConfig) -> bool:
    attends = any(kind.startswith("Attn") for kind in config.down_block_types)
    kinds = (config.downsample_type or "conv", config.upsample_type or "conv")
    return not attends or kinds == (theirs.downsample_type, theirs.upsample_type)


def write_arguments(config: Architecture, image_shape: ImageShape) -> dict[str, Any]:
    """Write the arguments of DiffusionModelUNet."""
    assert isinstance(config, UNet2DConfig)
    attends = tuple("Attn" in kind for kind in config.down_block_types)
    widths, size = config.block_out_channels, config.attention_head_dim
    by_resnet = any("Resnet" in kind for kind in config.down_block_types + config.up_block_types)
    return {
        "spatial_dims": 2,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_res_blocks": config.layers_per_block,
        "channels": widths,
        "attention_levels": attends,
        "norm_num_groups": config.norm_num_groups,
        "norm_eps": config.norm_eps,
        "resblock_updown": by_resnet or (any(attends) and config.downsample_type == "resnet"),
        "num_head_channels": tuple(widths) if size is None else size,
        "num_class_embeds": config.num_class_embeds,
    }


MONAI = Peer(
    make_config=make_config,
    arguments=ARGUMENTS,
    infer=infer,
    preset="diffusers-ddpm",
    architecture=UNet2DConfig,
    # Two sets of names for attention and upsampling: we write the first; MONAI's older package,
    # GenerativeModels, has the second.
    names=[
        ("conv_in.conv", "conv_in"),
        ("time_embed.0", "temb.dense_0"),
        ("time_embed.2", "temb.dense_1"),
        ("class_embedding", "class_emb"),
        ("class_embedding", "label_emb"),  # of Ho et al.'s U-Net
        ("middle_block.resnet_{i}", "mid.block_{i}"),
        ("middle_block.attention", "mid.attn_1"),
        ("down_blocks.{i}", "down_{i}"),
        ("up_blocks.{i}", "up_{-i}"),
        ("resnets.{i}", "block_{i}"),
        ("attentions.{i}", "attn_{i}"),
        ("downsampler.op.conv", "downsample"),
        ("downsampler", "downsample_block"),
        ("upsampler.postconv.conv", "upsample"),
        ("upsampler.conv.conv", "upsample"),
        ("upsampler", "upsample_block"),
        ("conv1.conv", "conv1"),
        ("conv2.conv", "conv2"),
        ("time_emb_proj", "temb_proj"),
        ("skip_connection.conv", "shortcut"),
        ("attn.to_q", "q"),
        ("attn.to_k", "k"),
        ("attn.to_v", "v"),
        ("attn.out_proj", "proj_out"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("proj_attn", "proj_out"),
        ("out.0", "norm_out"),
        ("out.2.conv", "conv_out"),
    ],
    layouts={"skip_connection.conv.weight": "pointwise_2d"},
    unknowable=("num_head_channels", "norm_num_groups", "norm_eps"),
    express=to_monai,
    write_arguments=write_arguments,
)
