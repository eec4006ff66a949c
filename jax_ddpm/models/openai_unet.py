"""The U-Net that OpenAI's improved-diffusion and guided-diffusion share."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Int, Num

from jax_ddpm.models.architecture import MAX_BLOCKS, Architecture, ImageShape
from jax_ddpm.models.initializers import zeros
from jax_ddpm.models.layers import (
    MLP,
    DropoutKeys,
    Features,
    LabelEmbedding,
    Temb,
    conv,
    downsample_mean,
    statistics_dtype,
    timestep_embedding,
    upsample_nearest,
)
from jax_ddpm.models.network import NetworkModule
from jax_ddpm.models.openai_layers import (
    NUM_GROUPS,
    AttentionBlock,
    Downsample,
    ResBlock,
    Upsample,
    norm,
)


@dataclass(frozen=True)
class OpenAIConfig(Architecture):
    """The settings that UNetModel has in both repositories."""

    model_channels: int = 128
    """Channels that channel-mult multiplies; the sinusoidal time embedding has as many."""
    channel_mult: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """Channels at each resolution, as multiples; each resolution is half of the one before."""
    num_res_blocks: int = 2
    """ResNet blocks per resolution."""
    attention_resolutions: tuple[int, ...] = (4, 8)
    """Resolutions with self-attention, by how many times smaller than the image they are: 1, 2, 4
    and so on."""
    dropout: float = 0.0
    """Probability that a feature is dropped in training."""
    conv_resample: bool = True
    """Change the resolution by convolutions; off: by averaging 2x2 pixels and repeating pixels."""
    num_classes: int | None = None
    """Number of classes that a label can have; None: the network takes no label."""
    num_heads: int = 1
    """Heads of each attention."""
    num_heads_upsample: int = -1
    """Heads on the expanding path; -1: num_heads."""
    use_scale_shift_norm: bool = False
    """The time scales and shifts the features after a norm; off: it only shifts them."""
    in_channels: int | None = None
    """Channels of the images; None: the data's."""
    out_channels: int | None = None
    """Channels of the output; None: the data's, or twice as many with a learned variance."""

    @property
    def stage_features(self) -> tuple[int, ...]:
        """Channels at each resolution, the full one first."""
        return tuple(int(mult * self.model_channels) for mult in self.channel_mult)

    @property
    def side_multiple(self) -> int:
        return int(2 ** (len(self.channel_mult) - 1))

    @property
    def image_channels(self) -> int | None:
        return self.in_channels

    @property
    def example_shape(self) -> ImageShape:
        return self.side_multiple, self.side_multiple, self.in_channels or 3

    @property
    def num_labels(self) -> int | None:
        return self.num_classes

    def count_heads(self, features: int, *, up: bool) -> int:
        """The number of heads of an attention; `up`: on the expanding path."""
        return self.num_heads_upsample if up and self.num_heads_upsample != -1 else self.num_heads

    def check(self) -> None:
        super().check()
        self.require(self.model_channels >= 1, "model_channels", "at least 1")
        features = self.stage_features
        fits = bool(features) and all(f >= 1 and f % NUM_GROUPS == 0 for f in features)
        expected = f"such that the channels, here {features}, are multiples of {NUM_GROUPS}"
        self.require(fits, "channel_mult", expected)
        self.require(self.num_res_blocks >= 0, "num_res_blocks", "at least 0")
        self.require(self.num_res_blocks <= MAX_BLOCKS, "num_res_blocks", f"at most {MAX_BLOCKS}")
        self.require(0 <= self.dropout < 1, "dropout", "in [0, 1)")
        self.require_positive("num_classes", "in_channels", "out_channels")
        self._check_heads()

    def _check_heads(self) -> None:
        self.require(self.num_heads >= 1, "num_heads", "at least 1")
        up = self.num_heads_upsample
        self.require(up >= 1 or up == -1, "num_heads_upsample", "at least 1, or -1")
        for features, on_way_up in list_attentions(self):
            heads = self.count_heads(features, up=on_way_up)
            name = "num_heads" if heads == self.num_heads else "num_heads_upsample"
            expected = f"a divisor of the {features} channels of an attention"
            self.require(features % heads == 0, name, expected, heads)


class LayerSpec(NamedTuple):
    """One layer of the plan; without `features` it has as many as come in."""

    kind: Literal["block", "attention", "downsample", "upsample"]
    features: int | None = None


ATTENTION = LayerSpec("attention")
MIDDLE = [LayerSpec("block"), ATTENTION, LayerSpec("block")]


def plan_input_blocks(config: OpenAIConfig) -> Iterator[list[LayerSpec]]:
    """The contracting path after the first convolution; each output is a skip connection."""
    for stage, features in enumerate(config.stage_features):
        attention = [ATTENTION] * (2**stage in config.attention_resolutions)
        for _ in range(config.num_res_blocks):
            yield [LayerSpec("block", features), *attention]
        if stage < len(config.channel_mult) - 1:
            yield [LayerSpec("downsample")]


def plan_output_blocks(config: OpenAIConfig) -> Iterator[list[LayerSpec]]:
    """The expanding path, with one block per skip connection."""
    for stage, features in reversed(list(enumerate(config.stage_features))):
        attention = [ATTENTION] * (2**stage in config.attention_resolutions)
        for i in range(config.num_res_blocks + 1):
            upsample = [LayerSpec("upsample")] * (stage > 0 and i == config.num_res_blocks)
            yield [LayerSpec("block", features), *attention, *upsample]


def list_attentions(config: OpenAIConfig) -> Iterator[tuple[int, bool]]:
    """The channels of every attention, and whether it is on the expanding path."""
    features = config.stage_features[0]
    for layers in plan_input_blocks(config):
        features = layers[0].features or features
        if ATTENTION in layers:
            yield features, False
    yield features, False
    for layers in plan_output_blocks(config):
        if ATTENTION in layers:
            yield layers[0].features or features, True


class OpenAIUNet(NetworkModule):
    """UNetModel of improved-diffusion and guided-diffusion; t may be fractional.

    `input_i_j`, `mid_j` and `output_i_j` are layers j of blocks i, numbered as theirs are.
    """

    config: OpenAIConfig
    resblock_updown: bool = False
    """ResNet blocks change the resolution."""
    qkv_first: bool = False

    def forward(
        self,
        x_t: Features,
        t: Num[Array, " b"],
        label: Int[Array, " b"] | None,
        dropout_keys: DropoutKeys,
    ) -> Features:
        config, temb = self.config, self._embed(t, label)
        h = conv(x_t, config.stage_features[0], 3, "conv_in", self.dtype)
        skips = [h]
        for i, layers in enumerate(plan_input_blocks(config), start=1):
            h = self._apply(f"input_{i}", layers, h, temb, dropout_keys)
            skips.append(h)
        h = self._apply("mid", MIDDLE, h, temb, dropout_keys)
        for i, layers in enumerate(plan_output_blocks(config)):
            h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = self._apply(f"output_{i}", layers, h, temb, dropout_keys, up=True)
        h = nn.silu(norm(h, "norm_out", self.dtype))
        return conv(h, self.out_channels, 3, "conv_out", self.dtype, init=zeros)

    def _embed(self, t: Num[Array, " b"], label: Int[Array, " b"] | None) -> Temb:
        width, wide = self.config.model_channels, statistics_dtype(self.dtype)
        h = timestep_embedding(t, width, wide, denominator=width // 2, cos_first=True)
        temb = MLP(4 * width, nn.silu, self.dtype, name="temb")(h)
        num_classes = self.config.num_classes
        if num_classes is None:
            return temb
        return temb + LabelEmbedding(num_classes, 4 * width, self.dtype, name="label_emb")(label)

    def _apply(
        self,
        name: str,
        layers: list[LayerSpec],
        h: Features,
        temb: Temb,
        keys: DropoutKeys,
        *,
        up: bool = False,
    ) -> Features:
        for j, layer in enumerate(layers):
            module = self._make(layer.kind, layer.features or h.shape[-1], up, f"{name}_{j}")
            h = module(h, temb, keys) if isinstance(module, ResBlock) else module(h)
        return h

    def _make(self, kind: str, features: int, up: bool, name: str) -> Any:
        config = self.config
        match kind:
            case "attention":
                heads = config.count_heads(features, up=up)
                return AttentionBlock(heads, self.qkv_first, self.dtype, name=name)
            case "downsample" if not self.resblock_updown:
                return Downsample(config.conv_resample, self.dtype, name=name)
            case "upsample" if not self.resblock_updown:
                return Upsample(config.conv_resample, self.dtype, name=name)
        resample = {"downsample": downsample_mean, "upsample": upsample_nearest}.get(kind)
        args = (features, config.dropout, config.use_scale_shift_norm, resample, self.dtype)
        return ResBlock(*args, name=name)
