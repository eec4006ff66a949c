"""The U-Net of Ho et al. 2020: our PyTorch reference, the original, and pesser's port."""

import re
from dataclasses import replace
from typing import Any

from jax_ddpm.errors import UserError
from jax_ddpm.interop.ho_as_unet2d import to_ho
from jax_ddpm.interop.peer import Peer, Shapes
from jax_ddpm.models import Architecture, UNetConfig
from jax_ddpm.models.architecture import ImageShape

HO_ARGUMENTS = (
    "ch",
    "out_ch",
    "ch_mult",
    "num_res_blocks",
    "attn_resolutions",
    "num_classes",
    "dropout",
    "resamp_with_conv",
)
# Its words for our arguments.
HO_WORDS = {"ch": "channels", "out_ch": "out_channels", "ch_mult": "channel_mult"}


def infer_torch_ref(shapes: Shapes) -> dict[str, Any]:
    """Infer all arguments but the number of groups, which defaults to 32."""
    return _infer({name: (*s[2:], s[1], s[0]) if len(s) == 4 else s for name, s in shapes.items()})


def infer_pesser(shapes: Shapes) -> dict[str, Any]:
    """Infer all arguments: the group norms always have 32 groups."""
    if "up.0.block.0.nin_shortcut.weight" not in shapes:  # torch_ref's names are nearly the same
        raise UserError("there is no up.0.block.0.nin_shortcut.weight")
    return infer_torch_ref(shapes)


def infer_ho(shapes: Shapes) -> dict[str, Any]:
    """Infer all arguments: tf.contrib's group norm always has 32 groups."""
    renamed = {}
    for name, shape in shapes.items():
        name = re.sub(r"(down|up|block|attn)_(\d+)", r"\1.\2", name.removeprefix("model/"))
        renamed[name.replace("/", ".").removesuffix(".W") + ".weight" * name.endswith("/W")] = shape
    return _infer(renamed)


def _infer(shapes: Shapes) -> dict[str, Any]:
    """Infer the arguments of torch_ref's U-Net from its names and (h, w, in, out) shapes."""
    if not {"temb.dense.0.weight", "temb.dense0.weight"} & shapes.keys():
        raise UserError("there is no embedding of t")  # an autoencoder has the other names
    in_channels, channels = shapes["conv_in.weight"][2:]
    sizes: dict[int, int] = {}
    attn_levels = set()
    blocks = set()
    for name, shape in shapes.items():
        if match := re.fullmatch(r"down\.(\d+)\.block\.(\d+)\.conv2\.weight", name):
            sizes[int(match[1])] = shape[3]
            blocks.add(int(match[2]))
        if match := re.match(r"down\.(\d+)\.attn\.", name):
            attn_levels.add(int(match[1]))
    return {
        "in_channels": in_channels,
        "out_channels": shapes["conv_out.weight"][3],
        "channels": channels,
        "channel_mult": tuple(sizes[i] // channels for i in sorted(sizes)),
        "num_res_blocks": len(blocks),
        "attn_levels": tuple(sorted(attn_levels)),
        "num_classes": shapes.get("label_emb.weight", (None,))[0],
        "resamp_with_conv": len(sizes) == 1 or any(".downsample." in name for name in shapes),
    }


def make_ho_config(**arguments: Any) -> UNetConfig:
    """Make the configuration from the words of Ho et al.'s code and of its port.

    `num_classes` is always 1 there and means none. `attn_resolutions` are sides in pixels; without
    the images' `resolution`, shapes tell where attention is.
    """
    known = {HO_WORDS.get(name, name): value for name, value in arguments.items()}
    del known["num_classes"]
    sides, side = known.pop("attn_resolutions", None), known.pop("resolution", None)
    if sides is not None and side is not None:
        levels = range(len(known["channel_mult"]))
        known["attn_levels"] = tuple(i for i in levels if side // 2**i in sides)
    return UNetConfig(**known)


def write_ho_arguments(config: Architecture, image_shape: ImageShape) -> dict[str, Any]:
    """Write the arguments of Ho et al.'s model(); it knows levels by the height of the features."""
    if not isinstance(config, UNetConfig) or config.num_classes is not None:
        raise UserError("it has Ho et al.'s U-Net only, which takes no label")
    return {
        "ch": config.channels,
        "out_ch": config.out_channels,
        "ch_mult": config.channel_mult,
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": tuple(image_shape[0] // 2**level for level in config.attn_levels),
        "num_classes": 1,  # theirs takes no label
        "dropout": config.dropout,
        "resamp_with_conv": config.resamp_with_conv,
    }


def write_pesser_arguments(config: Architecture, image_shape: ImageShape) -> dict[str, Any]:
    """Write the arguments of the port's Model(), which also takes the side of the images."""
    height, width, channels = image_shape
    if height != width:
        raise UserError(f"it takes square images only, but the run's are {height}x{width}")
    more = {"in_channels": channels, "resolution": height}
    return write_ho_arguments(config, image_shape) | more


TORCH_REF = Peer(
    make_config=UNetConfig,
    arguments=(
        "in_channels",
        "out_channels",
        "channels",
        "channel_mult",
        "num_res_blocks",
        "attn_levels",
        "dropout",
        "num_groups",
        "num_classes",
        "resamp_with_conv",
    ),
    infer=infer_torch_ref,
    preset="fashion-cpu",
    architecture=UNetConfig,
    names=[
        ("temb.dense.{i}", "temb.dense_{i}"),
        ("mid.block_{i}", "mid.block_{i}"),
        ("mid.attn_{i}", "mid.attn_{i}"),
        ("down.{i}", "down_{i}"),
        ("up.{i}", "up_{i}"),
        ("block.{i}", "block_{i}"),
        ("attn.{i}", "attn_{i}"),
        ("label_emb", "label_emb"),
        ("label_emb", "class_emb"),  # of UNet2DModel
    ],
    layouts={
        "shortcut.weight": "pointwise_2d",
        "q.weight": "pointwise_2d",
        "k.weight": "pointwise_2d",
        "v.weight": "pointwise_2d",
        "proj_out.weight": "pointwise_2d",
    },
    express=to_ho,
)

PESSER = replace(
    TORCH_REF,
    make_config=make_ho_config,
    arguments=(*HO_ARGUMENTS, "in_channels", "resolution"),
    infer=infer_pesser,
    preset="ddpm-cifar10",
    names=[
        *TORCH_REF.names,
        ("downsample.conv", "downsample"),
        ("upsample.conv", "upsample"),
        ("nin_shortcut", "shortcut"),
    ],
    layouts={**TORCH_REF.layouts, "nin_shortcut.weight": "pointwise_2d"},
    write_arguments=write_pesser_arguments,
)

HO = Peer(
    make_config=make_ho_config,
    arguments=HO_ARGUMENTS,
    infer=infer_ho,
    preset="ddpm-cifar10",
    architecture=UNetConfig,
    names=[
        ("model", ""),
        ("dense{i}", "dense_{i}"),
        ("downsample.conv", "downsample"),
        ("upsample.conv", "upsample"),
        ("nin_shortcut", "shortcut"),
        ("norm{i}.beta", "norm{i}.bias"),
        ("norm.beta", "norm.bias"),
        ("norm_out.beta", "norm_out.bias"),
        ("W", "kernel"),
        ("gamma", "scale"),
        ("b", "bias"),
    ],
    prefix="model/",
    torch_layout=False,
    express=to_ho,
    write_arguments=write_ho_arguments,
)
