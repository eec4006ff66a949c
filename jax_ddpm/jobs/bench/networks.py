"""The networks that are measured, each with the PyTorch code that it is measured against."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jax_ddpm.config.presets import diffusers_ddpm, find_preset
from jax_ddpm.config.run import Config
from jax_ddpm.interop import PeerName
from jax_ddpm.models import (
    AnnotatedConfig,
    Architecture,
    LucidrainsConfig,
    PulferConfig,
    UNetConfig,
)
from jax_ddpm.models.architecture import ImageShape


class Subject(NamedTuple):
    """A network to measure."""

    title: str
    model: Architecture
    image_shape: ImageShape
    batch_size: int
    """Images in a training step, unless the user asks for another number."""
    source: PeerName
    """The implementation whose code it is measured against."""


def make_diffusers(channels: tuple[int, ...]) -> Architecture:
    """Make diffusers' CIFAR-10 network with the given channels at each resolution."""
    network: Any = diffusers_ddpm(channels, attention=1)
    return replace(network, in_channels=3, out_channels=3)


def make_default() -> Architecture:
    """Make the network of the default preset."""
    network: Any = find_preset("fashion-cpu").model
    return replace(network, in_channels=1, out_channels=1)


WIDE, NARROW, GREY = (32, 32, 3), (28, 28, 3), (28, 28, 1)
NETWORKS: dict[str, Subject] = {
    "diffusers": Subject(
        "google/ddpm-cifar10-32", make_diffusers((128, 256, 256, 256)), WIDE, 8, "diffusers"
    ),
    "diffusers-narrow": Subject(
        "the same, 32, 64 and 128 channels", make_diffusers((32, 64, 128)), NARROW, 64, "diffusers"
    ),
    "lucidrains": Subject(
        "denoising-diffusion-pytorch", LucidrainsConfig(channels=3), WIDE, 16, "lucidrains"
    ),
    "lucidrains-narrow": Subject(
        "the same, dim 32, mults 1, 2, 4",
        LucidrainsConfig(dim=32, dim_mults=(1, 2, 4), channels=1),
        GREY,
        64,
        "lucidrains",
    ),
    "fashion-cpu": Subject("the default preset", make_default(), GREY, 16, "torch_ref"),
    "ho": Subject(
        "Ho et al., CIFAR-10", UNetConfig(in_channels=3, out_channels=3), WIDE, 8, "torch_ref"
    ),
    "annotated-convnext": Subject(
        "The Annotated Diffusion Model, 2022", AnnotatedConfig(channels=1), GREY, 128, "annotated"
    ),
    "pulfer": Subject("Pulfer's MyUNet", PulferConfig(), GREY, 128, "pulfer"),
}
if TYPE_CHECKING:
    NetworkName = str
else:
    NetworkName = Literal[tuple(NETWORKS)]


def make_config(
    subject: Subject, batch_size: int | None, dtype: Any, *, steps_per_call: int = 1
) -> Config:
    """Make the configuration to train `subject`: AdamW, clipped gradients and an average.

    So every network is trained in the same way, in both frameworks, on one device.
    """
    config = find_preset("diffusers-ddpm")
    train = replace(
        config.train,
        batch_size=batch_size or subject.batch_size,
        steps_per_call=steps_per_call,
        parallel="jit",
    )
    return replace(config, train=train, model=replace(subject.model, compute_dtype=dtype))
