"""Ho et al.'s U-Net is diffusers' UNet2DModel with the settings of google's checkpoints."""

from dataclasses import replace
from typing import Any

from jax_ddpm.errors import UserError
from jax_ddpm.models import Architecture, UNet2DConfig, UNetConfig
from jax_ddpm.models.architecture import ImageShape


def to_unet2d(config: Architecture, image_shape: ImageShape) -> Architecture:
    """The same network as UNet2DModel, told the size of its images; others stay what they are.

    Raises UserError for images that Ho et al.'s network pads, which UNet2DModel does not.
    """
    height, width, _ = image_shape
    size = height if height == width else (height, width)
    if isinstance(config, UNet2DConfig):
        return replace(config, sample_size=size)
    if not isinstance(config, UNetConfig):
        return config
    stages = range(len(config.channel_mult))
    multiple = 2 ** stages[-1]
    if height % multiple or width % multiple:
        raise UserError(
            f"it pads images of {height}x{width} inside to multiples of {multiple}, which "
            "UNet2DModel does not"
        )
    if not config.resamp_with_conv and multiple > 1:
        raise UserError(
            "it changes the resolution without a convolution (resamp_with_conv), which UNet2DModel "
            "does not"
        )
    attends = [i in config.attn_levels for i in stages]
    return UNet2DConfig(
        sample_size=size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        freq_shift=1,
        flip_sin_to_cos=False,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        block_out_channels=tuple(config.channels * mult for mult in config.channel_mult),
        layers_per_block=config.num_res_blocks,
        downsample_padding=0,
        dropout=config.dropout,
        attention_head_dim=None,
        norm_num_groups=config.num_groups,
        norm_eps=1e-6,
        num_class_embeds=config.num_classes,
        compute_dtype=config.compute_dtype,
    )


def to_ho(config: Architecture, image_shape: ImageShape) -> Architecture:
    """The same network as Ho et al.'s U-Net: the inverse of `to_unet2d`.

    Raises UserError for a UNet2DModel with other settings than google's.
    """
    if not isinstance(config, UNet2DConfig):
        return config
    widths, first = config.block_out_channels, config.block_out_channels[0]
    found = UNetConfig(
        channels=first,
        channel_mult=tuple(width // first for width in widths),
        num_res_blocks=config.layers_per_block,
        attn_levels=tuple(
            i for i, kind in enumerate(config.down_block_types) if kind == "AttnDownBlock2D"
        ),
        dropout=config.dropout,
        num_groups=config.norm_num_groups or 0,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_classes=config.num_class_embeds,
        compute_dtype=config.compute_dtype,
    )
    same: dict[str, Any] = {
        "sample_size": None,
        "act_fn": "silu" if config.act_fn == "swish" else config.act_fn,
        "downsample_type": config.downsample_type or "conv",
        "upsample_type": config.upsample_type or "conv",
        "num_train_timesteps": None,  # of a learned table only
    }
    if config.time_embedding_dim == 4 * first:
        same["time_embedding_dim"] = None
    if config.attn_norm_num_groups == config.norm_num_groups:
        same["attn_norm_num_groups"] = None
    theirs = to_unet2d(found, image_shape)
    assert isinstance(theirs, UNet2DConfig)
    if replace(theirs, sample_size=None) != replace(config, **same):
        raise UserError("this UNet2DModel has other settings than google's checkpoints")
    return found
