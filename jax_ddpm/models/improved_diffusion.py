"""The network of OpenAI's improved-diffusion (Nichol & Dhariwal 2021)."""

from dataclasses import dataclass
from typing import Any

from jax_ddpm.models.openai_unet import OpenAIConfig, OpenAIUNet


@dataclass(frozen=True)
class ImprovedDiffusionConfig(OpenAIConfig):
    """UNetModel of improved-diffusion."""

    channel_mult: tuple[int, ...] = (1, 2, 4, 8)
    """Channels at each resolution, as multiples; each resolution is half of the one before."""

    def module(self, out_channels: int, dtype: Any) -> OpenAIUNet:
        return OpenAIUNet(self, self.out_channels or out_channels, dtype)

    def check(self) -> None:
        super().check()
        mult = self.channel_mult
        # theirs gives the first convolution model_channels, whatever the first multiple is
        starts = all(int(m) == m for m in mult) and mult[0] == 1
        self.require(starts, "channel_mult", "whole numbers, the first of them 1")
        # theirs builds its pooling with too few arguments
        works = self.conv_resample or len(mult) == 1
        self.require(works, "conv_resample", "True where there are several resolutions")
