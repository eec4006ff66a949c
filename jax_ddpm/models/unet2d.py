"""diffusers' UNet2DModel, in every configuration; google's DDPM checkpoints are of this class."""

from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Num

from jax_ddpm.models.base import MAX_BLOCKS, Architecture, ImageShape, require, require_positive
from jax_ddpm.models.layers import Dtype, Features, GroupNorm, statistics_dtype
from jax_ddpm.models.unet2d_blocks import (
    ACTIVATIONS,
    DownLevel,
    DropoutKeys,
    Middle,
    Resampler,
    Style,
    Temb,
    TimeEmbeddingType,
    TimeProjection,
    TwoLayers,
    UpLevel,
    conv,
    quarter_groups,
)
from jax_ddpm.models.unet2d_variants import (
    K_GROUP_SIZE,
    SKIP_ATTENTION_GROUPS,
    KDownLevel,
    KUpLevel,
    SkipDownLevel,
    SkipUpLevel,
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
DOWN_BLOCKS: tuple[str, ...] = DownBlock.__args__  # type: ignore[attr-defined]
UP_BLOCKS: tuple[str, ...] = UpBlock.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class UNet2DConfig(Architecture):
    """diffusers' UNet2DModel under the names of its arguments; the defaults are its own."""

    sample_size: int | tuple[int, int] | None = None
    """Height and width of the images, for the record: the network takes any that halve."""
    in_channels: int | None = None
    """Channels of the images; None: those of the data."""
    out_channels: int | None = None
    """Channels of the output; None: those of the data, twice as many with a learned variance."""
    center_input_sample: bool = False
    """Take images in [0, 1], and map them to [-1, 1]."""
    time_embedding_type: TimeEmbeddingType = "positional"
    """Sines of t; of log t at random frequencies (the output is divided by t); or a table."""
    time_embedding_dim: int | None = None
    """Width of the time embedding; None: four times the first level's."""
    freq_shift: int = 0
    """The frequencies end at 1e-4 with 1 (as in Ho et al. 2020), just above it with 0."""
    flip_sin_to_cos: bool = True
    """Cosines before sines; Ho et al. 2020 have sines first."""
    down_block_types: tuple[DownBlock, ...] = ("DownBlock2D",) + 3 * ("AttnDownBlock2D",)
    """The blocks of each level, from the full resolution; the last does not downsample."""
    mid_block_type: Literal["UNetMidBlock2D"] | None = "UNetMidBlock2D"
    """The blocks at the lowest resolution; None: none."""
    up_block_types: tuple[UpBlock, ...] = (*3 * ("AttnUpBlock2D",), "UpBlock2D")
    """The blocks on the way up, from the lowest resolution; the last does not upsample."""
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    """Channels of each level."""
    layers_per_block: int = 2
    """ResNet blocks per level; one more on the way up."""
    mid_block_scale_factor: float = 1.0
    """What the sums in the middle are divided by."""
    downsample_padding: int = 1
    """1 pads strided convolutions on all sides, 0 below and on the right (Ho et al. 2020)."""
    downsample_type: Resampler | None = "conv"
    """How AttnDownBlock2D downsamples: a strided convolution, or a ResNet block; None: conv."""
    upsample_type: Resampler | None = "conv"
    """How AttnUpBlock2D upsamples."""
    dropout: float = 0.0
    """Probability that a feature is dropped in training."""
    act_fn: str = "silu"
    """Activation of the blocks: silu, swish (the same), mish, gelu or relu."""
    attention_head_dim: int | None = 8
    """Channels of an attention head; None: all, so one head (Ho et al. 2020)."""
    norm_num_groups: int | None = 32
    """Groups of each group normalisation; None (Skip blocks only): of 4 channels, at most 32."""
    attn_norm_num_groups: int | None = None
    """Groups of the norm of the middle's attention; None: norm_num_groups, but no norm at all with
    scale_shift."""
    norm_eps: float = 1e-5
    """What the norms add to the variance; Ho et al. 2020 have 1e-6."""
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    """The time embedding shifts the features, or it scales and shifts them."""
    add_attention: bool = True
    """Attention in the middle."""
    class_embed_type: Literal["timestep", "identity"] | None = None
    """None: a table of num_class_embeds classes; timestep: as t is embedded; identity: the label is
    an embedding itself."""
    num_class_embeds: int | None = None
    """Number of classes the images are labelled with; None: without labels."""
    num_train_timesteps: int | None = None
    """Entries of a learned time embedding."""

    def module(self, out_channels: int, dtype: Any) -> "UNet2D":
        """The Linen module; see the base class."""
        return UNet2D(config=self, out_channels=self.out_channels or out_channels, dtype=dtype)

    def check(self) -> None:
        """Raise ValueError for the first setting that cannot work."""
        self._check_blocks()
        self._check_time()
        self._check_widths()
        require_positive(self, "in_channels", "out_channels", "time_embedding_dim")
        blocks = self.layers_per_block
        require(blocks >= 1, "layers-per-block", blocks, "at least 1")
        require(blocks <= MAX_BLOCKS, "layers-per-block", blocks, f"at most {MAX_BLOCKS}")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        known = f"one of {', '.join(ACTIVATIONS)}"
        require(self.act_fn.lower() in ACTIVATIONS, "act-fn", self.act_fn, known)
        padding, scale = self.downsample_padding, self.mid_block_scale_factor
        require(padding in (0, 1), "downsample-padding", padding, "0 or 1")
        require(scale != 0, "mid-block-scale-factor", scale, "other than 0")
        require(self.norm_eps > 0, "norm-eps", self.norm_eps, "positive")
        for name in ("downsample_type", "upsample_type"):
            value = getattr(self, name)
            ok = value in ("conv", "resnet", None)
            require(ok, name.replace("_", "-"), value, "conv or resnet")
        shift = self.resnet_time_scale_shift
        known = "default or scale_shift"
        require(shift in ("default", "scale_shift"), "resnet-time-scale-shift", shift, known)

    def _check_blocks(self) -> None:
        widths, down, up = self.block_out_channels, self.down_block_types, self.up_block_types
        ok = bool(widths) and min(widths) >= 1
        require(ok, "block-out-channels", widths, "positive whole numbers")
        each = f"{len(widths)} blocks, one for each of --model.block-out-channels"
        require(len(down) == len(widths), "down-block-types", down, each)
        require(len(up) == len(widths), "up-block-types", up, each)
        for flag, types, known in (
            ("down-block-types", down, DOWN_BLOCKS),
            ("up-block-types", up, UP_BLOCKS),
        ):
            unknown = next((kind for kind in types if kind not in known), types[0])
            require(unknown in known, flag, unknown, f"one of {', '.join(known)}")
        num_k = sum(kind.startswith("K") for kind in down + up)
        ok = num_k in (0, 2 * len(widths)) or len(widths) == 1
        require(ok, "down-block-types", down, "K blocks at all levels, down and up, or at none")
        skips = ["Skip" in kind for kind in down[:-1]]
        ok = skips == sorted(skips, reverse=True)
        require(ok, "down-block-types", down, "Skip blocks from the first level on, then others")
        skips = ["Skip" in kind for kind in up]
        require(skips == sorted(skips), "up-block-types", up, "Skip blocks at the end, if anywhere")
        images = (self.in_channels or 3, self.out_channels or 3)
        ok = images == (3, 3) or not any("Skip" in kind for kind in down + up)
        require(ok, "in-channels", images, "3, as --model.out-channels, with Skip blocks")

    def _check_time(self) -> None:
        kind, half = self.time_embedding_type, self.block_out_channels[0] // 2
        known = ("positional", "fourier", "learned")
        require(kind in known, "time-embedding-type", kind, f"one of {', '.join(known)}")
        if kind == "positional":
            expected = "other than half of the first of --model.block-out-channels"
            require(self.freq_shift != half, "freq-shift", self.freq_shift, expected)
        ok = kind != "learned" or (self.num_train_timesteps or 0) >= 1
        require(ok, "num-train-timesteps", self.num_train_timesteps, "given for a learned table")
        embed, classes = self.class_embed_type, self.num_class_embeds
        ok = embed in (None, "timestep", "identity")
        require(ok, "class-embed-type", embed, "timestep, identity or None")
        require(classes is None or classes >= 1, "num-class-embeds", classes, "at least 1")

    def _check_widths(self) -> None:
        """Channels divide into the groups of their norms, and heads are no wider than they are."""
        groups, widths = self.norm_num_groups, self.block_out_channels
        ok = groups is None or groups >= 1
        require(ok, "norm-num-groups", groups, "at least 1, or None")
        for width, *kinds in zip(
            widths, self.down_block_types, reversed(self.up_block_types), strict=True
        ):
            for kind in kinds:
                ok = groups is not None or "Skip" in kind or kind.startswith("K")
                require(ok, "norm-num-groups", groups, f"a number with {kind}")
                self._check_width(kind, width, self._unit(kind, width), "Attn" in kind)
        self._check_width("the last norm", widths[0], self._unit("", widths[0]), False)
        if self.mid_block_type is not None:
            unit, last = self.attn_norm_num_groups, widths[-1]
            self._check_width("the middle", last, self._unit("", last), self.add_attention)
            ok = unit is None or (unit >= 1 and last % unit == 0)
            require(ok, "attn-norm-num-groups", unit, f"a divisor of {last} channels")

    def _unit(self, kind: str, width: int) -> int:
        """What the channels of a block must be a multiple of."""
        if kind.startswith("K"):
            return K_GROUP_SIZE
        if "AttnSkip" in kind:
            return SKIP_ATTENTION_GROUPS
        return quarter_groups(width) if "Skip" in kind else self.style(None).groups(width)

    def _check_width(self, where: str, width: int, unit: int, attention: bool) -> None:
        ok = unit >= 1 and width % unit == 0
        expected = f"multiples of {unit or 4} for {where}"
        require(ok, "block-out-channels", self.block_out_channels, expected)
        size = self.attention_head_dim
        ok = size is None or not attention or 1 <= size <= width
        require(ok, "attention-head-dim", size, f"between 1 and {width} for {where}")

    @property
    def multiple(self) -> int:
        """What height and width of the images must be multiples of."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def num_labels(self) -> int | None:
        """The number of classes."""
        return self.num_class_embeds

    @property
    def example_shape(self) -> ImageShape:
        """An image of the network."""
        return 2 * self.multiple, 2 * self.multiple, self.in_channels or 3

    def style(self, dtype: Dtype) -> Style:
        """What all blocks have in common."""
        return Style(
            num_groups=self.norm_num_groups,
            eps=self.norm_eps,
            act_fn=self.act_fn,
            dropout=self.dropout,
            scale_shift=self.resnet_time_scale_shift == "scale_shift",
            head_dim=self.attention_head_dim,
            dtype=dtype,
        )


class UNet2D(nn.Module):
    """UNet2DModel. Height and width of the images must halve at every level but the last."""

    config: UNet2DConfig
    out_channels: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_t: Features,
        t: Num[Array, " b"],
        *,
        label: Num[Array, "b ..."] | None = None,
        train: bool = False,
        dropout_keys: DropoutKeys = None,
    ) -> Features:
        """The raw output [b, h, w, out_channels], float32, for images x_t at timesteps t.

        `label` is [b], or [b, e] where it is an embedding itself. It is for networks with
        classes, else it is a TypeError, as is a missing one where there are classes. Dropout is on
        where `train` is set and each example has a key.
        """
        config, style = self.config, self.config.style(self.dtype)
        self._require_size(x_t)
        keys = dropout_keys if train else None
        x_t = x_t.astype(self.dtype)
        x_t = 2 * x_t - 1 if config.center_input_sample else x_t

        temb = self._embed(t, label)
        h = conv(x_t, config.block_out_channels[0], "conv_in", self.dtype)
        skips = [h]
        image: Features | None = x_t
        for i in range(len(config.block_out_channels)):
            (h, image), outputs = down_level(config, style, i)(h, image, temb, keys)
            skips += outputs
        if config.mid_block_type is not None:
            h = middle(config, style)(h, temb, keys)
        image = None
        for i in reversed(range(len(config.block_out_channels))):
            level = up_level(config, style, i)
            skips, mine = skips[: -level.num_blocks], skips[-level.num_blocks :]
            h, image = level(h, image, mine, temb, keys)

        first = config.block_out_channels[0]
        norm = GroupNorm(style.groups(first), self.dtype, config.norm_eps, name="norm_out")
        h = conv(jax.nn.silu(norm(h)), self.out_channels, "conv_out", self.dtype)
        h = h if image is None else h + image
        h = h.astype(statistics_dtype(self.dtype))
        if config.time_embedding_type == "fourier":
            h = h / t.astype(h.dtype)[:, None, None, None]
        return h

    def _embed(self, t: Num[Array, " b"], label: Any) -> Temb:
        config = self.config
        features = config.time_embedding_dim or 4 * config.block_out_channels[0]
        projection = TimeProjection(
            config.time_embedding_type, config.block_out_channels[0], config.freq_shift,
            config.flip_sin_to_cos, config.num_train_timesteps, self.dtype, name="time_proj",
        )  # fmt: skip
        temb = TwoLayers(features, self.dtype, name="temb")(projection(t))
        kind, classes = config.class_embed_type, config.num_class_embeds
        if kind is None and classes is None:
            if label is not None:
                raise TypeError("this network has no classes, but a label is given")
            return temb
        if label is None:
            if not self.is_initializing():
                raise TypeError("this network has classes, but no label is given")
            label = jnp.zeros_like(temb if kind == "identity" else t)
        if kind == "identity":
            return temb + jnp.asarray(label, self.dtype)
        if kind == "timestep":
            classed = TwoLayers(features, self.dtype, name="class_emb")
            return temb + classed(projection(jnp.asarray(label)))
        init = nn.initializers.normal(1.0)
        table = nn.Embed(classes or 0, features, self.dtype, embedding_init=init, name="class_emb")
        return temb + table(jnp.asarray(label))

    def _require_size(self, x_t: Features) -> None:
        height, width = x_t.shape[1:3]
        if height % self.config.multiple or width % self.config.multiple:
            raise ValueError(
                f"the images are {height}x{width}, but both sides must be multiples of "
                f"{self.config.multiple}"
            )


def down_level(config: UNet2DConfig, style: Style, i: int) -> Any:
    """The module of level `i` of the contracting path."""
    kind, features = config.down_block_types[i], config.block_out_channels[i]
    blocks, more = config.layers_per_block, i < len(config.block_out_channels) - 1
    name, attention = f"down_{i}", "Attn" in kind
    if kind.startswith("K"):
        return KDownLevel(features, blocks, more, style, name=name)
    if "Skip" in kind:
        return SkipDownLevel(features, blocks, attention, more, style, name=name)
    chosen: Resampler = config.downsample_type or "conv" if attention else "conv"
    how: Resampler = "resnet" if kind == "ResnetDownsampleBlock2D" else chosen
    padding = (1, 1) if config.downsample_padding else (0, 1)
    args = (features, blocks, attention, how if more else None, padding)
    return DownLevel(*args, style, name=name)


def up_level(config: UNet2DConfig, style: Style, i: int) -> Any:
    """The module of level `i` of the expanding path."""
    kind, features = config.up_block_types[-1 - i], config.block_out_channels[i]
    blocks, more = config.layers_per_block + 1, i > 0
    name, attention = f"up_{i}", "Attn" in kind
    if kind.startswith("K"):
        width = config.block_out_channels[max(i - 1, 0)]
        return KUpLevel(features, width, blocks - 1, more, style, name=name)
    if "Skip" in kind:
        return SkipUpLevel(features, blocks, attention, more, style, name=name)
    chosen: Resampler = config.upsample_type or "conv" if attention else "conv"
    how: Resampler = "resnet" if kind == "ResnetUpsampleBlock2D" else chosen
    return UpLevel(features, blocks, attention, how if more else None, style, name=name)


def middle(config: UNet2DConfig, style: Style) -> Middle:
    """The module of the lowest resolution."""
    groups = config.attn_norm_num_groups
    if groups is None and not style.scale_shift:
        groups = style.groups(config.block_out_channels[-1])
    return Middle(style, config.add_attention, groups, config.mid_block_scale_factor, name="mid")
