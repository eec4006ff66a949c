"""The network of OpenAI's guided-diffusion (Dhariwal & Nichol 2021, section 3)."""

from dataclasses import dataclass
from typing import Any

from jax_ddpm.models.openai_unet import OpenAIConfig, OpenAIUNet, list_attentions


@dataclass(frozen=True)
class GuidedDiffusionConfig(OpenAIConfig):
    """UNetModel of guided-diffusion."""

    num_head_channels: int = -1
    """Channels of each attention head; -1: num_heads decides."""
    resblock_updown: bool = False
    """Change the resolution by ResNet blocks; off: by single convolutions."""
    use_new_attention_order: bool = False
    """Split projections into queries, keys and values first, then into heads; off: the reverse."""

    def module(self, out_channels: int, dtype: Any) -> OpenAIUNet:
        return OpenAIUNet(
            self,
            self.out_channels or out_channels,
            dtype,
            resblock_updown=self.resblock_updown,
            qkv_first=self.use_new_attention_order,
        )

    def count_heads(self, features: int, *, up: bool) -> int:
        if self.num_head_channels == -1:
            return super().count_heads(features, up=up)
        return features // self.num_head_channels

    def _check_heads(self) -> None:
        size = self.num_head_channels
        if size == -1:
            super()._check_heads()
            return
        self.require(size >= 1, "num_head_channels", "at least 1, or -1")
        for features, _ in list_attentions(self):
            expected = f"a divisor of the {features} channels of an attention"
            self.require(features % size == 0, "num_head_channels", expected)
