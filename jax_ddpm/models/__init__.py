"""Networks behind one contract: `init(key)` -> params, `apply_fn(params, x_t, t)` -> output.

An architecture is one file and one line in ARCHITECTURES.
"""

from jax_ddpm.models.base import Architecture, NetworkFns, make_network, parameter_shapes
from jax_ddpm.models.unet import UNet, UNetConfig

ARCHITECTURES: dict[str, type[Architecture]] = {
    "unet": UNetConfig,
}
ModelConfig = UNetConfig

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "ModelConfig",
    "NetworkFns",
    "UNet",
    "UNetConfig",
    "make_network",
    "parameter_shapes",
]
