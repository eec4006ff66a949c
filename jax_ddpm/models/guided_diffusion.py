"""The network of OpenAI's guided-diffusion (Dhariwal & Nichol 2021, section 3)."""

from dataclasses import dataclass
from typing import Any

from jax_ddpm.models.base import require
from jax_ddpm.models.openai_unet import OpenAIConfig, OpenAIUNet, Path, attended


@dataclass(frozen=True)
class GuidedDiffusionConfig(OpenAIConfig):
    """UNetModel of guided-diffusion."""

    num_head_channels: int = -1
    """Channels of each attention head, instead of num-heads; -1: num-heads counts."""
    resblock_updown: bool = False
    """ResNet blocks, not single convolutions, change the resolution."""
    use_new_attention_order: bool = False
    """Projections are split into queries, keys, values first, then heads; else the reverse."""

    def module(self, out_channels: int, dtype: Any) -> OpenAIUNet:
        """The Linen module; see the base class."""
        return OpenAIUNet(
            self,
            self.out_channels or out_channels,
            dtype,
            resblock_updown=self.resblock_updown,
            qkv_first=self.use_new_attention_order,
        )

    def heads(self, features: int, path: Path) -> int:
        """The number of heads of an attention with so many channels."""
        if self.num_head_channels == -1:
            return super().heads(features, path)
        return features // self.num_head_channels

    def _check_heads(self) -> None:
        size = self.num_head_channels
        if size == -1:
            super()._check_heads()
            return
        require(size >= 1, "num-head-channels", size, "at least 1, or -1")
        for features, _ in attended(self):
            expected = f"a divisor of the {features} channels of an attention"
            require(features % size == 0, "num-head-channels", size, expected)
