"""Networks behind one contract: `init(key)` -> params, `apply_fn(params, x_t, t)` -> output.

An architecture is one file and one line in ARCHITECTURES.
"""

from jax_ddpm.models.annotated import AnnotatedConfig
from jax_ddpm.models.annotated_ws import AnnotatedWSConfig
from jax_ddpm.models.base import Architecture, NetworkFns, make_network, parameter_shapes
from jax_ddpm.models.custom import CustomConfig, adapt_network
from jax_ddpm.models.guided_diffusion import GuidedDiffusionConfig
from jax_ddpm.models.improved_diffusion import ImprovedDiffusionConfig
from jax_ddpm.models.lucidrains import LucidrainsConfig
from jax_ddpm.models.pulfer import PulferConfig
from jax_ddpm.models.unet import UNet, UNetConfig
from jax_ddpm.models.unet2d import UNet2DConfig

ARCHITECTURES: dict[str, type[Architecture]] = {
    "unet": UNetConfig,
    "unet2d": UNet2DConfig,
    "annotated": AnnotatedConfig,
    "annotated_ws": AnnotatedWSConfig,
    "guided_diffusion": GuidedDiffusionConfig,
    "improved_diffusion": ImprovedDiffusionConfig,
    "lucidrains": LucidrainsConfig,
    "pulfer": PulferConfig,
    "custom": CustomConfig,
}
ModelConfig = (
    UNetConfig
    | UNet2DConfig
    | AnnotatedConfig
    | AnnotatedWSConfig
    | GuidedDiffusionConfig
    | ImprovedDiffusionConfig
    | LucidrainsConfig
    | PulferConfig
    | CustomConfig
)

__all__ = [
    "ARCHITECTURES",
    "AnnotatedConfig",
    "AnnotatedWSConfig",
    "Architecture",
    "CustomConfig",
    "GuidedDiffusionConfig",
    "ImprovedDiffusionConfig",
    "LucidrainsConfig",
    "ModelConfig",
    "NetworkFns",
    "PulferConfig",
    "UNet",
    "UNet2DConfig",
    "UNetConfig",
    "adapt_network",
    "make_network",
    "parameter_shapes",
]
