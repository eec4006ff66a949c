"""diffusers' UNet2DModel, as in Google's DDPM checkpoints and diffusers' training script."""

import re
from typing import Any

from jax_ddpm.errors import UserError
from jax_ddpm.interop.diffusers_facts import describe
from jax_ddpm.interop.ho_as_unet2d import to_unet2d
from jax_ddpm.interop.peer import Peer, Shapes
from jax_ddpm.models.unet2d import UNet2DConfig

UNKNOWABLE = (
    "attention_head_dim",
    "norm_num_groups",
    "norm_eps",
    "flip_sin_to_cos",
    "freq_shift",
    "downsample_padding",
    "act_fn",
    "mid_block_scale_factor",
    "center_input_sample",
)


def infer(shapes: Shapes) -> dict[str, Any]:
    """Infer channels, resolutions, blocks, attention, and the embeddings of t and classes."""
    stages = 1 + max(_find_numbers(shapes, r"down_blocks\.(\d+)\."), default=-1)
    widths = [_get(shapes, f"down_blocks.{i}.resnets.0.conv2.weight")[0] for i in range(stages)]
    return {
        "in_channels": _get(shapes, "conv_in.weight")[1],
        "out_channels": _get(shapes, "conv_out.weight")[0],
        "block_out_channels": tuple(widths),
        "layers_per_block": len(_find_numbers(shapes, r"down_blocks\.0\.resnets\.(\d+)\.")),
        "add_attention": any(name.startswith("mid_block.attentions.0.") for name in shapes),
        "mid_block_type": "UNetMidBlock2D"
        if "mid_block.resnets.0.conv1.weight" in shapes
        else None,
        "time_embedding_dim": _get(shapes, "time_embedding.linear_1.weight")[0],
        **_infer_embeddings(shapes),
        **_infer_blocks(shapes, stages),
    }


def _infer_embeddings(shapes: Shapes) -> dict[str, Any]:
    found: dict[str, Any] = {"time_embedding_type": "positional"}
    table = shapes.get("time_proj.weight")
    if table is not None:
        found["time_embedding_type"] = "learned" if len(table) == 2 else "fourier"
        found |= {"num_train_timesteps": table[0]} if len(table) == 2 else {}
    if "class_embedding.linear_1.weight" in shapes:
        found["class_embed_type"] = "timestep"
    if "class_embedding.weight" in shapes:
        found["num_class_embeds"] = shapes["class_embedding.weight"][0]
    first = "down_blocks.0.resnets.0."
    time, out = shapes.get(f"{first}time_emb_proj.weight"), shapes.get(f"{first}conv2.weight")
    if time is not None and out is not None:
        found["resnet_time_scale_shift"] = "scale_shift" if time[0] == 2 * out[0] else "default"
    return found


def _infer_blocks(shapes: Shapes, stages: int) -> dict[str, Any]:
    """Infer the types of plain blocks; the types of other blocks cannot be told from names."""
    if any("skip_conv" in name or "norm1.linear" in name for name in shapes):
        return {}
    found: dict[str, Any] = {}
    for way, plain, resample in (("down", "DownBlock2D", "Down"), ("up", "UpBlock2D", "Up")):
        types = []
        for i in range(stages):
            names = [name for name in shapes if name.startswith(f"{way}_blocks.{i}.")]
            attention = any(".attentions." in name for name in names)
            resnet = any(f"{way}samplers.0.conv1." in name for name in names)
            if attention and any(f".{way}samplers." in name for name in names):
                found[f"{way}sample_type"] = "resnet" if resnet else "conv"
            kind = f"Resnet{resample}sampleBlock2D" if resnet else plain
            types.append(f"Attn{plain}" if attention else kind)
        found[f"{way}_block_types"] = tuple(types)
    return found


def _find_numbers(shapes: Shapes, pattern: str) -> set[int]:
    return {int(match[1]) for name in shapes if (match := re.match(pattern, name))}


def _get(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise UserError(f"there is no {name}")
    return shapes[name]


def make_config(**arguments: Any) -> UNet2DConfig:
    """Make the configuration from diffusers' arguments; old names of blocks are accepted too."""
    for name in ("down_block_types", "up_block_types"):
        if name in arguments:
            arguments[name] = tuple(kind.removeprefix("UNetRes") for kind in arguments[name])
    if arguments.get("mid_block_type") is not None:
        arguments["mid_block_type"] = "UNetMidBlock2D"  # diffusers ignores the name, too
    return UNet2DConfig(**arguments)


DIFFUSERS = Peer(
    make_config=make_config,
    arguments=tuple(name for name in UNet2DConfig.__dataclass_fields__ if name != "compute_dtype"),
    infer=infer,
    preset="diffusers-ddpm",
    architecture=UNet2DConfig,
    # Up blocks are numbered from the lowest resolution. Attention has two sets of names: we write
    # the first; old versions of diffusers used the second.
    names=[
        ("time_embedding.linear_1", "temb.dense_0"),
        ("time_embedding.linear_2", "temb.dense_1"),
        ("class_embedding.linear_1", "class_emb.dense_0"),
        ("class_embedding.linear_2", "class_emb.dense_1"),
        ("class_embedding", "class_emb"),
        ("class_embedding", "label_emb"),  # of Ho et al.'s U-Net
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"),
        ("down_blocks.{i}", "down_{i}"),
        ("up_blocks.{i}", "up_{-i}"),
        ("resnets.{i}", "block_{i}"),
        ("attentions.{i}", "attn_{i}"),
        ("downsamplers.0.conv", "downsample"),
        ("downsamplers.0", "downsample_block"),
        ("upsamplers.0.conv", "upsample"),
        ("upsamplers.0", "upsample_block"),
        ("time_emb_proj", "temb_proj"),
        ("conv_shortcut", "shortcut"),
        ("group_norm", "norm"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("to_out.0", "proj_out"),
        ("query", "q"),
        ("key", "k"),
        ("value", "v"),
        ("proj_attn", "proj_out"),
        ("conv_norm_out", "norm_out"),
    ],
    layouts={
        "conv_shortcut.weight": "pointwise_2d",
        "query.weight": "pointwise_2d",
        "key.weight": "pointwise_2d",
        "value.weight": "pointwise_2d",
        "proj_attn.weight": "pointwise_2d",
    },
    buffers=("time_proj.W",),
    unknowable=UNKNOWABLE,
    describe=describe,
    express=to_unet2d,
)
