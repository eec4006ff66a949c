"""Two convolutions with the time between them: the recipe's new file in jax_ddpm/models."""

from dataclasses import dataclass

import flax.linen as nn

from jax_ddpm.models.architecture import Architecture
from jax_ddpm.models.layers import conv, dense, timestep_embedding
from jax_ddpm.models.network import NetworkModule


@dataclass(frozen=True)
class TinyConfig(Architecture):
    """Two convolutions with the time between them."""

    width: int = 8
    """Channels between the convolutions."""
    channels: int | None = None
    """Channels of the images; None takes the data's."""

    def module(self, out_channels, dtype):
        return Tiny(self, out_channels, dtype)

    @property
    def image_channels(self):
        return self.channels


class Tiny(NetworkModule):
    config: TinyConfig

    def forward(self, x_t, t, label, dropout_keys):
        width = self.config.width
        h = conv(x_t, width, 3, "conv_in", self.dtype)
        time = dense(timestep_embedding(t, 8, h.dtype), width, "time", self.dtype)
        h = nn.silu(h + time[:, None, None, :])
        return conv(h, self.out_channels, 3, "conv_out", self.dtype)
