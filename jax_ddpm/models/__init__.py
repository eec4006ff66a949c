"""Networks behind one contract: `init(key) -> params`, `apply_fn(params, x_t, t) -> output`.

An architecture is one file and one line in ARCHITECTURES.
"""

from typing import TYPE_CHECKING, Union

from jax_ddpm.models.annotated import AnnotatedConfig
from jax_ddpm.models.annotated_ws import AnnotatedWSConfig
from jax_ddpm.models.architecture import Architecture
from jax_ddpm.models.custom import CustomConfig, adapt_network
from jax_ddpm.models.guided_diffusion import GuidedDiffusionConfig
from jax_ddpm.models.improved_diffusion import ImprovedDiffusionConfig
from jax_ddpm.models.lucidrains import LucidrainsConfig
from jax_ddpm.models.lucidrains_v0 import LucidrainsV0Config
from jax_ddpm.models.lucidrains_v1 import LucidrainsV1Config
from jax_ddpm.models.network import NetworkFns, NetworkModule, make_network, parameter_shapes
from jax_ddpm.models.pulfer import PulferConfig
from jax_ddpm.models.summary import summarize
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
    "lucidrains_v1": LucidrainsV1Config,
    "lucidrains_v0": LucidrainsV0Config,
    "pulfer": PulferConfig,
    "custom": CustomConfig,
}
if TYPE_CHECKING:
    ModelConfig = Architecture
else:
    ModelConfig = Union[tuple(ARCHITECTURES.values())]  # noqa: UP007

__all__ = [
    "ARCHITECTURES",
    "AnnotatedConfig",
    "AnnotatedWSConfig",
    "Architecture",
    "CustomConfig",
    "GuidedDiffusionConfig",
    "ImprovedDiffusionConfig",
    "LucidrainsConfig",
    "LucidrainsV0Config",
    "LucidrainsV1Config",
    "ModelConfig",
    "NetworkFns",
    "NetworkModule",
    "PulferConfig",
    "UNet",
    "UNet2DConfig",
    "UNetConfig",
    "adapt_network",
    "make_network",
    "parameter_shapes",
    "summarize",
]
