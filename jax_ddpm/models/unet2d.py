"""diffusers' UNet2DModel in every configuration; google's DDPM checkpoints are of this class."""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Num

from jax_ddpm.errors import check_choice, flag_name
from jax_ddpm.models.architecture import FLAGS, MAX_BLOCKS, Architecture, ImageShape
from jax_ddpm.models.layers import (
    MLP,
    DropoutKeys,
    Dtype,
    Features,
    GroupNorm,
    LabelEmbedding,
    Temb,
    conv,
    statistics_dtype,
)
from jax_ddpm.models.network import NetworkModule
from jax_ddpm.models.unet2d_blocks import (
    ACTIVATIONS,
    DownStage,
    Middle,
    ResampleType,
    Style,
    TimeEmbeddingType,
    TimeProjection,
    UpStage,
    count_quarter_groups,
)
from jax_ddpm.models.unet2d_variants import (
    K_GROUP_SIZE,
    SKIP_ATTENTION_GROUPS,
    KDownStage,
    KUpStage,
    SkipDownStage,
    SkipUpStage,
)

DownBlock = Literal[
    "DownBlock2D",
    "AttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "SkipDownBlock2D",
    "AttnSkipDownBlock2D",
    "KDownBlock2D",
]
UpBlock = Literal[
    "UpBlock2D",
    "AttnUpBlock2D",
    "ResnetUpsampleBlock2D",
    "SkipUpBlock2D",
    "AttnSkipUpBlock2D",
    "KUpBlock2D",
]


@dataclass(frozen=True)
class UNet2DConfig(Architecture):
    """diffusers' UNet2DModel under the names of its arguments; the defaults are its own."""

    sample_size: int | tuple[int, int] | None = None
    """Height and width of the images. For information only: the network takes any side that can be
    halved at every downsampling."""
    in_channels: int | None = None
    """Channels of the images; None: the data's."""
    out_channels: int | None = None
    """Channels of the output; None: the data's, or twice as many with a learned variance."""
    center_input_sample: bool = False
    """Take images in [0, 1], and map them to [-1, 1]."""
    time_embedding_type: TimeEmbeddingType = "positional"
    """positional: sines of t. fourier: sines of log t at random frequencies; the output is divided
    by t. learned: a table."""
    time_embedding_dim: int | None = None
    """Width of the time embedding; None: four times the channels at full resolution."""
    freq_shift: int = 0
    """1: the frequencies end at 1e-4, as in Ho et al. 2020. 0: just above it."""
    flip_sin_to_cos: bool = True
    """Cosines before sines; Ho et al. 2020 have sines first."""
    down_block_types: tuple[DownBlock, ...] = ("DownBlock2D",) + 3 * ("AttnDownBlock2D",)
    """The blocks of each resolution, from the full one; the last does not downsample."""
    mid_block_type: Literal["UNetMidBlock2D"] | None = "UNetMidBlock2D"
    """The blocks at the lowest resolution; None: no blocks there."""
    up_block_types: tuple[UpBlock, ...] = (*3 * ("AttnUpBlock2D",), "UpBlock2D")
    """The blocks on the way up, from the lowest resolution; the last does not upsample."""
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    """Channels at each resolution."""
    layers_per_block: int = 2
    """ResNet blocks per resolution; one more on the way up."""
    mid_block_scale_factor: float = 1.0
    """The divisor of the sums at the lowest resolution."""
    downsample_padding: int = 1
    """1: pad strided convolutions on all sides. 0: below and on the right, as Ho et al. 2020."""
    downsample_type: ResampleType | None = "conv"
    """How AttnDownBlock2D downsamples: by a strided convolution or a ResNet block; None: conv."""
    upsample_type: ResampleType | None = "conv"
    """How AttnUpBlock2D upsamples."""
    dropout: float = 0.0
    """Probability that a feature is dropped in training."""
    act_fn: str = "silu"
    """Activation of the blocks: silu, swish (the same), mish, gelu or relu."""
    attention_head_dim: int | None = 8
    """Channels of an attention head; None: all, so that there is one head (Ho et al. 2020)."""
    norm_num_groups: int | None = 32
    """Groups of each group normalisation; None (Skip blocks only): of 4 channels, at most 32."""
    attn_norm_num_groups: int | None = None
    """Groups of the norm before the attention at the lowest resolution; None: norm_num_groups, but
    no norm at all with scale_shift."""
    norm_eps: float = 1e-5
    """Added to the variance in the norms; Ho et al. 2020 have 1e-6."""
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    """default: the time embedding shifts the features. scale_shift: it scales and shifts them."""
    add_attention: bool = True
    """Attention at the lowest resolution."""
    class_embed_type: Literal["timestep", "identity"] | None = None
    """None: a table of num_class_embeds classes. timestep: as t is embedded. identity: the label is
    an embedding itself."""
    num_class_embeds: int | None = None
    """Number of classes that a label can have; None: the network takes no label."""
    num_train_timesteps: int | None = None
    """Rows of a learned table of time embeddings."""

    def module(self, out_channels: int, dtype: Any) -> "UNet2D":
        return UNet2D(self, self.out_channels or out_channels, dtype)

    def check(self) -> None:
        super().check()
        check_choice(flag_name("act_fn", FLAGS), self.act_fn.lower(), ACTIVATIONS)
        self._check_blocks()
        self._check_time()
        self._check_widths()
        self.require_positive(
            "in_channels", "out_channels", "time_embedding_dim", "num_class_embeds"
        )
        layers = self.layers_per_block
        self.require(layers >= 1, "layers_per_block", "at least 1")
        self.require(layers <= MAX_BLOCKS, "layers_per_block", f"at most {MAX_BLOCKS}")
        self.require(0 <= self.dropout < 1, "dropout", "in [0, 1)")
        self.require(self.downsample_padding in (0, 1), "downsample_padding", "0 or 1")
        self.require(self.mid_block_scale_factor != 0, "mid_block_scale_factor", "other than 0")
        self.require(self.norm_eps > 0, "norm_eps", "positive")

    def _check_blocks(self) -> None:
        widths, down, up = self.block_out_channels, self.down_block_types, self.up_block_types
        positive = bool(widths) and min(widths) >= 1
        self.require(positive, "block_out_channels", "positive whole numbers")
        each = f"{len(widths)} blocks, one for each of --model.block-out-channels"
        self.require(len(down) == len(widths), "down_block_types", each)
        self.require(len(up) == len(widths), "up_block_types", each)
        num_k = sum(kind.startswith("K") for kind in down + up)
        ok = num_k in (0, 2 * len(widths)) or len(widths) == 1
        self.require(ok, "down_block_types", "K blocks everywhere, down and up, or nowhere")
        skips = ["Skip" in kind for kind in down[:-1]]
        ok = skips == sorted(skips, reverse=True)
        self.require(ok, "down_block_types", "Skip blocks from full resolution on, then others")
        skips = ["Skip" in kind for kind in up]
        self.require(skips == sorted(skips), "up_block_types", "Skip blocks only at the end")
        images = (self.in_channels or 3, self.out_channels or 3)
        ok = images == (3, 3) or not any("Skip" in kind for kind in down + up)
        self.require(ok, "in_channels", "3, as --model.out-channels, with Skip blocks", images)

    def _check_time(self) -> None:
        if self.time_embedding_type == "positional":
            expected = "other than half of the first of --model.block-out-channels"
            self.require(self.freq_shift != self.block_out_channels[0] // 2, "freq_shift", expected)
        ok = self.time_embedding_type != "learned" or (self.num_train_timesteps or 0) >= 1
        self.require(ok, "num_train_timesteps", "given for a learned table")

    def _check_widths(self) -> None:
        """Channels divide into the groups of their norms, and heads are no wider than they are."""
        groups, widths = self.norm_num_groups, self.block_out_channels
        self.require(groups is None or groups >= 1, "norm_num_groups", "at least 1, or None")
        for width, *kinds in zip(
            widths, self.down_block_types, reversed(self.up_block_types), strict=True
        ):
            for kind in kinds:
                ok = groups is not None or "Skip" in kind or kind.startswith("K")
                self.require(ok, "norm_num_groups", f"a number with {kind}")
                self._check_width(kind, width, self._unit(kind, width), "Attn" in kind)
        self._check_width("the last norm", widths[0], self._unit("", widths[0]), False)
        if self.mid_block_type is not None:
            unit, last = self.attn_norm_num_groups, widths[-1]
            self._check_width("the middle", last, self._unit("", last), self.add_attention)
            ok = unit is None or (unit >= 1 and last % unit == 0)
            self.require(ok, "attn_norm_num_groups", f"a divisor of {last} channels")

    def _unit(self, kind: str, width: int) -> int:
        """The number that the channels of a block must be a multiple of."""
        if kind.startswith("K"):
            return K_GROUP_SIZE
        if "AttnSkip" in kind:
            return SKIP_ATTENTION_GROUPS
        return (
            count_quarter_groups(width) if "Skip" in kind else self.style(None).count_groups(width)
        )

    def _check_width(self, where: str, width: int, unit: int, attention: bool) -> None:
        ok = unit >= 1 and width % unit == 0
        self.require(ok, "block_out_channels", f"multiples of {unit or 4} for {where}")
        size = self.attention_head_dim
        ok = size is None or not attention or 1 <= size <= width
        self.require(ok, "attention_head_dim", f"between 1 and {width} for {where}")

    @property
    def side_multiple(self) -> int:
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def image_channels(self) -> int | None:
        return self.in_channels

    @property
    def example_shape(self) -> ImageShape:
        return 2 * self.side_multiple, 2 * self.side_multiple, self.in_channels or 3

    @property
    def num_labels(self) -> int | None:
        return self.num_class_embeds

    @property
    def takes_label(self) -> bool:
        return self.class_embed_type is not None or self.num_class_embeds is not None

    def style(self, dtype: Dtype) -> Style:
        """The settings that all blocks have in common."""
        return Style(
            num_groups=self.norm_num_groups,
            eps=self.norm_eps,
            act_fn=self.act_fn,
            dropout=self.dropout,
            scale_shift=self.resnet_time_scale_shift == "scale_shift",
            head_dim=self.attention_head_dim,
            dtype=dtype,
        )


class UNet2D(NetworkModule):
    """UNet2DModel; t may be fractional."""

    config: UNet2DConfig

    def forward(
        self,
        x_t: Features,
        t: Num[Array, " b"],
        label: Num[Array, "b ..."] | None,
        dropout_keys: DropoutKeys,
    ) -> Features:
        """`label` is [b], or [b, e] where it is an embedding itself."""
        config, style = self.config, self.config.style(self.dtype)
        x_t = 2 * x_t - 1 if config.center_input_sample else x_t
        first, stages = config.block_out_channels[0], range(len(config.block_out_channels))

        temb = self._embed(t, label)
        h = conv(x_t, first, 3, "conv_in", self.dtype)
        skips = [h]
        image: Features | None = x_t
        for i in stages:
            (h, image), outputs = make_down_stage(config, style, i)(h, image, temb, dropout_keys)
            skips += outputs
        if config.mid_block_type is not None:
            h = make_middle(config, style)(h, temb, dropout_keys)
        image = None
        for i in reversed(stages):
            stage = make_up_stage(config, style, i)
            skips, newest = skips[: -stage.num_blocks], skips[-stage.num_blocks :]
            h, image = stage(h, image, newest, temb, dropout_keys)

        norm = GroupNorm(style.count_groups(first), self.dtype, config.norm_eps, name="norm_out")
        h = conv(jax.nn.silu(norm(h)), self.out_channels, 3, "conv_out", self.dtype)
        h = (h if image is None else h + image).astype(statistics_dtype(self.dtype))
        if config.time_embedding_type == "fourier":
            h = h / t.astype(h.dtype)[:, None, None, None]
        return h

    def _embed(self, t: Num[Array, " b"], label: Any) -> Temb:
        config, first = self.config, self.config.block_out_channels[0]
        features = config.time_embedding_dim or 4 * first
        project = TimeProjection(
            config.time_embedding_type,
            first,
            config.freq_shift,
            config.flip_sin_to_cos,
            config.num_train_timesteps,
            self.dtype,
            name="time_proj",
        )
        temb = MLP(features, nn.silu, self.dtype, name="temb")(project(t))
        match config.class_embed_type:
            case "identity":
                return temb if label is None else temb + jnp.asarray(label, self.dtype)
            case "timestep":
                label = jnp.zeros_like(t) if label is None else jnp.asarray(label)
                classes = MLP(features, nn.silu, self.dtype, name="class_emb")
                return temb + classes(project(label))
        if config.num_class_embeds is None:
            return temb
        table = LabelEmbedding(config.num_class_embeds, features, self.dtype, name="class_emb")
        return temb + table(label)


def make_down_stage(config: UNet2DConfig, style: Style, i: int) -> Any:
    """The module of stage `i` of the contracting path."""
    kind, features = config.down_block_types[i], config.block_out_channels[i]
    blocks, more = config.layers_per_block, i < len(config.block_out_channels) - 1
    name, attention = f"down_{i}", "Attn" in kind
    if kind.startswith("K"):
        return KDownStage(features, blocks, more, style, name=name)
    if "Skip" in kind:
        return SkipDownStage(features, blocks, attention, more, style, name=name)
    chosen: ResampleType = config.downsample_type or "conv" if attention else "conv"
    how: ResampleType = "resnet" if kind == "ResnetDownsampleBlock2D" else chosen
    padding = (1, 1) if config.downsample_padding else (0, 1)
    args = (features, blocks, attention, how if more else None, padding)
    return DownStage(*args, style, name=name)


def make_up_stage(config: UNet2DConfig, style: Style, i: int) -> Any:
    """The module of stage `i` of the expanding path."""
    kind, features = config.up_block_types[-1 - i], config.block_out_channels[i]
    blocks, more = config.layers_per_block + 1, i > 0
    name, attention = f"up_{i}", "Attn" in kind
    if kind.startswith("K"):
        width = config.block_out_channels[max(i - 1, 0)]
        return KUpStage(features, width, blocks - 1, more, style, name=name)
    if "Skip" in kind:
        return SkipUpStage(features, blocks, attention, more, style, name=name)
    chosen: ResampleType = config.upsample_type or "conv" if attention else "conv"
    how: ResampleType = "resnet" if kind == "ResnetUpsampleBlock2D" else chosen
    return UpStage(features, blocks, attention, how if more else None, style, name=name)


def make_middle(config: UNet2DConfig, style: Style) -> Middle:
    """The module of the lowest resolution."""
    groups = config.attn_norm_num_groups
    if groups is None and not style.scale_shift:
        groups = style.count_groups(config.block_out_channels[-1])
    return Middle(style, config.add_attention, groups, config.mid_block_scale_factor, name="mid")
