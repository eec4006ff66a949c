"""How each peer names the layers of the U-Net of Ho et al. 2020.

A name is translated from left to right: the first rule whose left side is what comes next gives
way to its right side; a part without a rule stays. `{i}` is a number, `{-i}` the level counted from
the other end.
"""

from typing import Literal, NamedTuple

SourceName = Literal["torch_ref", "diffusers", "ho"]


class Table(NamedTuple):
    """The names of one peer, and whether its kernels are laid out as PyTorch's, (out, in, h, w)."""

    names: list[tuple[str, str]]
    torch_layout: bool = True


TABLES: dict[SourceName, Table] = {
    "torch_ref": Table(
        [
            ("temb.dense.{i}", "temb.dense_{i}"),
            ("down.{i}", "down_{i}"),
            ("up.{i}", "up_{i}"),
            ("block.{i}", "block_{i}"),
            ("attn.{i}", "attn_{i}"),
        ]
    ),
    # diffusers' UNet2DModel as configured by google/ddpm-cifar10-32; it numbers the up path from
    # the lowest resolution, and old files use its earlier names of the attention layers.
    "diffusers": Table(
        [
            ("time_embedding.linear_1", "temb.dense_0"),
            ("time_embedding.linear_2", "temb.dense_1"),
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0", "mid.attn_1"),
            ("down_blocks.{i}", "down_{i}"),
            ("up_blocks.{i}", "up_{-i}"),
            ("resnets.{i}", "block_{i}"),
            ("attentions.{i}", "attn_{i}"),
            ("downsamplers.0.conv", "downsample"),
            ("upsamplers.0.conv", "upsample"),
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
        ]
    ),
    # The TensorFlow variables of Ho et al.: kernels (h, w, in, out) already.
    "ho": Table(
        [
            ("model", ""),
            ("dense{i}", "dense_{i}"),
            ("downsample.conv", "downsample"),
            ("upsample.conv", "upsample"),
            ("nin_shortcut", "shortcut"),
            ("W", "kernel"),
            ("gamma", "scale"),
            ("beta", "bias"),
            ("b", "bias"),
        ],
        torch_layout=False,
    ),
}
