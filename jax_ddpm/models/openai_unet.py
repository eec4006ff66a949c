"""The U-Net that OpenAI's improved-diffusion and guided-diffusion share."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Int, Real

from jax_ddpm.models.base import MAX_BLOCKS, Architecture, ImageShape, require, require_positive
from jax_ddpm.models.layers import Features, LabelEmbedding, statistics_dtype
from jax_ddpm.models.openai_layers import (
    NUM_GROUPS,
    AttentionBlock,
    Downsample,
    DropoutKeys,
    ResBlock,
    Temb,
    TimeEmbedding,
    Upsample,
    conv,
    norm,
)


@dataclass(frozen=True)
class OpenAIConfig(Architecture):
    """What both repositories' UNetModel can be told."""

    model_channels: int = 128
    """Channels that channel-mult multiplies; the sinusoidal time embedding has as many."""
    channel_mult: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """Channels of each level, as multiples; each level halves the resolution."""
    num_res_blocks: int = 2
    """ResNet blocks per level."""
    attention_resolutions: tuple[int, ...] = (4, 8)
    """Levels with self-attention, by how many times smaller than the image they are: 1, 2, 4..."""
    dropout: float = 0.0
    """Probability that a feature is dropped in training."""
    conv_resample: bool = True
    """Convolutions where the resolution changes; else means of 2x2 pixels, and repeated pixels."""
    num_classes: int | None = None
    """Number of classes the images are labelled with; None: without labels."""
    num_heads: int = 1
    """Heads of each attention."""
    num_heads_upsample: int = -1
    """Heads on the expanding path; -1: as many as elsewhere."""
    use_scale_shift_norm: bool = False
    """The time also scales features, after a norm; else it only shifts them."""
    in_channels: int | None = None
    """Channels of the images; None: those of the data."""
    out_channels: int | None = None
    """Channels of the output; None: those of the data, twice as many with a learned variance."""

    @property
    def level_features(self) -> tuple[int, ...]:
        """Channels of each level, the full resolution first."""
        return tuple(int(mult * self.model_channels) for mult in self.channel_mult)

    @property
    def num_labels(self) -> int | None:
        """The number of classes."""
        return self.num_classes

    @property
    def example_shape(self) -> ImageShape:
        """The smallest image that the network takes."""
        side = 2 ** (len(self.channel_mult) - 1)
        return side, side, self.in_channels or 3

    def heads(self, features: int, path: "Path") -> int:
        """The number of heads of an attention with so many channels."""
        up = path == "output" and self.num_heads_upsample != -1
        return self.num_heads_upsample if up else self.num_heads

    def check(self) -> None:
        """Raise ValueError for the first setting that cannot work."""
        require(self.model_channels >= 1, "model-channels", self.model_channels, "at least 1")
        mult = self.channel_mult
        features = self.level_features
        fits = bool(mult) and all(f >= 1 and f % NUM_GROUPS == 0 for f in features)
        expected = f"such that each level's channels, here {features}, are multiples of 32"
        require(fits, "channel-mult", mult, expected)
        blocks = self.num_res_blocks
        require(blocks >= 0, "num-res-blocks", blocks, "at least 0")
        require(blocks <= MAX_BLOCKS, "num-res-blocks", blocks, f"at most {MAX_BLOCKS}")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        require_positive(self, "num_classes", "in_channels", "out_channels")
        self._check_heads()

    def _check_heads(self) -> None:
        down, up = self.num_heads, self.num_heads_upsample
        require(down >= 1, "num-heads", down, "at least 1")
        require(up >= 1 or up == -1, "num-heads-upsample", up, "at least 1, or -1")
        for features, path in attended(self):
            name = "num-heads" if self.heads(features, path) == down else "num-heads-upsample"
            divides = features % self.heads(features, path) == 0
            expected = f"a divisor of the {features} channels of an attention"
            require(divides, name, self.heads(features, path), expected)


Path = Literal["input", "mid", "output"]


class Layer(NamedTuple):
    """One layer of the plan; without `features` it has as many as come in."""

    kind: Literal["block", "attention", "downsample", "upsample"]
    features: int | None = None


ATTENTION = Layer("attention")
MIDDLE = [Layer("block"), ATTENTION, Layer("block")]


def input_blocks(config: OpenAIConfig) -> Iterator[list[Layer]]:
    """What follows the first convolution; the expanding path sees each output again."""
    for level, features in enumerate(config.level_features):
        attention = [ATTENTION] * (2**level in config.attention_resolutions)
        for _ in range(config.num_res_blocks):
            yield [Layer("block", features), *attention]
        if level < len(config.channel_mult) - 1:
            yield [Layer("downsample")]


def output_blocks(config: OpenAIConfig) -> Iterator[list[Layer]]:
    """The expanding path: as many blocks as there are outputs to see again."""
    for level, features in reversed(list(enumerate(config.level_features))):
        attention = [ATTENTION] * (2**level in config.attention_resolutions)
        for i in range(config.num_res_blocks + 1):
            upsample = [Layer("upsample")] * (level > 0 and i == config.num_res_blocks)
            yield [Layer("block", features), *attention, *upsample]


def attended(config: OpenAIConfig) -> Iterator[tuple[int, Path]]:
    """The channels of every attention and where it is."""
    features = config.level_features[0]
    for layers in input_blocks(config):
        features = layers[0].features or features
        if ATTENTION in layers:
            yield features, "input"
    yield features, "mid"
    for layers in output_blocks(config):
        if ATTENTION in layers:
            yield layers[0].features or features, "output"


class OpenAIUNet(nn.Module):
    """UNetModel of improved-diffusion and guided-diffusion.

    `input_i_j`, `mid_j` and `output_i_j` are layers j of blocks i, numbered as theirs are.
    """

    config: OpenAIConfig
    out_channels: int
    dtype: Any = jnp.float32
    resblock_updown: bool = False
    """ResNet blocks change the resolution."""
    qkv_first: bool = False

    @nn.compact
    def __call__(
        self,
        x_t: Features,
        t: Real[Array, " b"],
        *,
        label: Int[Array, " b"] | None = None,
        train: bool = False,
        dropout_keys: DropoutKeys = None,
    ) -> Features:
        """The raw output [b, h, w, out_channels] for images x_t [b, h, w, c] at times t [b].

        `label` in 0..num_classes-1 is for networks with classes, else it is a TypeError, as is
        none for those. Sides that are not multiples of 2^(levels - 1) are a ValueError: where the
        network doubles what it halved, they do not meet again.
        """
        check_sides(x_t.shape[1:3], len(self.config.channel_mult))
        keys = dropout_keys if train else None
        temb = TimeEmbedding(self.config.model_channels, self.dtype, name="temb")(t)
        temb = self._add_label(temb, label)
        h = x_t.astype(self.dtype)
        h = conv(h, self.config.level_features[0], "conv_in", self.dtype)
        skips = [h]
        for i, layers in enumerate(input_blocks(self.config), start=1):
            h = self._apply("input", f"input_{i}", layers, h, temb, keys)
            skips.append(h)
        h = self._apply("mid", "mid", MIDDLE, h, temb, keys)
        for i, layers in enumerate(output_blocks(self.config)):
            h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = self._apply("output", f"output_{i}", layers, h, temb, keys)

        h = nn.silu(norm(h, "norm_out", self.dtype))
        h = conv(h, self.out_channels, "conv_out", self.dtype, zero=True)
        return h.astype(statistics_dtype(self.dtype))

    def _add_label(self, temb: Temb, label: Int[Array, " b"] | None) -> Temb:
        num_classes = self.config.num_classes
        if num_classes is None:
            if label is not None:
                raise TypeError("this network has no classes, but a label is given")
            return temb
        return temb + LabelEmbedding(num_classes, self.dtype, name="label_emb")(temb, label)

    def _apply(
        self, path: Path, name: str, layers: list[Layer], h: Features, temb: Temb, keys: DropoutKeys
    ) -> Features:
        for j, layer in enumerate(layers):
            features = layer.features or h.shape[-1]
            module = self._make(layer.kind, path, features, f"{name}_{j}")
            h = module(h, temb, keys) if isinstance(module, ResBlock) else module(h)
        return h

    def _make(self, kind: str, path: Path, features: int, name: str) -> Any:
        config = self.config
        match kind:
            case "attention":
                heads = config.heads(features, path)
                return AttentionBlock(heads, self.qkv_first, self.dtype, name=name)
            case "downsample" if not self.resblock_updown:
                return Downsample(config.conv_resample, self.dtype, name=name)
            case "upsample" if not self.resblock_updown:
                return Upsample(config.conv_resample, self.dtype, name=name)
        resampling = {"downsample": "down", "upsample": "up"}.get(kind)
        args = (features, config.dropout, config.use_scale_shift_norm, resampling, self.dtype)
        return ResBlock(*args, name=name)


def check_sides(sides: tuple[int, ...], num_levels: int) -> None:
    """Raise ValueError unless both sides can be halved once per level but the first."""
    multiple = 2 ** (num_levels - 1)
    if any(side % multiple for side in sides):
        raise ValueError(
            f"the images are {sides[0]}x{sides[1]}, but a network of {num_levels} levels takes "
            f"sides that are multiples of {multiple}"
        )
