"""Whose code a checkpoint is compared with: the package it comes from, else our PyTorch twin."""

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, Network, Source, to_state_dict
from report.network import Reference


class Place(NamedTuple):
    """Where to find a network, and in which precisions it can compute."""

    module: str
    name: str
    renamed: Mapping[str, Callable[[Any], Any]] = MappingProxyType({})
    """Arguments that our configuration has otherwise, from it."""
    dtypes: tuple[str, ...] = ("float64", "float32")
    to_double: Callable[[torch.nn.Module], None] = lambda module: None


def exact_timesteps(module: torch.nn.Module) -> None:
    """Let diffusers' sinusoidal embedding, float32 by its own code, follow a network in float64."""
    for child in module.modules():
        if type(child).__name__ == "Timesteps":
            child.register_forward_hook(lambda layer, args, out: _timesteps(layer, args[0]))


def _timesteps(layer: Any, t: torch.Tensor) -> torch.Tensor:
    half = layer.num_channels // 2
    index = torch.arange(half, dtype=torch.float64)
    rates = torch.exp(index * (-torch.log(torch.tensor(10000.0, dtype=torch.float64)))
                      / (half - layer.downscale_freq_shift))  # fmt: skip
    angles = layer.scale * t.double()[:, None] * rates
    parts = [angles.cos(), angles.sin()] if layer.flip_sin_to_cos else [angles.sin(), angles.cos()]
    return torch.nn.functional.pad(torch.cat(parts, dim=1), (0, layer.num_channels % 2))


# OpenAI's code casts to float32 inside, whatever it is given: it is compared in float32 alone, and
# the twin in float64.
PACKAGES: dict[str, Place] = {
    "lucidrains": Place("denoising_diffusion_pytorch", "Unet"),
    "diffusers": Place("diffusers", "UNet2DModel", to_double=exact_timesteps),
    "guided_diffusion": Place("guided_diffusion.unet", "UNetModel", dtypes=("float32",)),
    "improved_diffusion": Place("improved_diffusion.unet", "UNetModel", dtypes=("float32",)),
}
ANNOTATED = Place(
    "torch_ref.annotated", "AnnotatedUNet", {"layer": lambda config: config.norm == "layer"}
)
TWINS: dict[str, Place] = {
    "torch_ref": Place("torch_ref.unet", "UNet"),
    "ho": Place("torch_ref.unet", "UNet"),
    "lucidrains": Place("torch_ref.lucidrains", "LucidrainsUNet"),
    "annotated": ANNOTATED,
    "annotated_layernorm": ANNOTATED,
    "epita": ANNOTATED,
    "annotated_ws": Place(
        "torch_ref.annotated_ws",
        "AnnotatedWSUNet",
        {"divide": lambda config: config.weight_standardization == "divide"},
    ),
    "guided_diffusion": Place("torch_ref.openai", "UNetModel"),
    "improved_diffusion": Place("torch_ref.openai", "UNetModel"),
    "pulfer": Place("torch_ref.pulfer", "PulferUNet"),
}


def references(network: Network) -> Iterator[Reference]:
    """The package's network in the precisions it can do, and the twin in those that are left.

    Raises UserError if there is neither.
    """
    left = ["float64", "float32"]
    for place in (PACKAGES.get(network.source), TWINS.get(network.source)):
        reference = place and left and build(place, network)
        if reference:
            dtypes = tuple(dtype for dtype in left if dtype in reference.dtypes)
            yield reference._replace(dtypes=dtypes)
            left = [dtype for dtype in left if dtype not in dtypes]
    if len(left) == 2:
        package = PACKAGES.get(network.source)
        way_out = f": install the package {package.module.split('.')[0]}" if package else ""
        raise UserError(f"there is no PyTorch network to compare {network.source} with{way_out}")


def build(place: Place, network: Network) -> Reference | None:
    """The network at `place` with the weights of `network`; None if it is not installed.

    Raises UserError if it does not take the weights.
    """
    try:
        kind = getattr(importlib.import_module(place.module), place.name)
    except ImportError:
        return None
    package = place.module.split(".")[0]
    source: Source = "torch_ref" if network.source == "ho" else network.source
    weights = to_state_dict(network.params, PEERS[source])
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    try:
        module = kind(**arguments(kind, place, network.config))
        module.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{place.module}.{place.name} does not take these weights: {reason}"
        ) from error
    name = place.module if package == "torch_ref" else f"{package} {version(package)}".strip()
    return Reference(name, module.float(), source, place.dtypes, place.to_double)


def arguments(kind: Any, place: Place, config: Any) -> dict[str, Any]:
    """Those of a constructor's arguments that our configuration has, by name or renamed."""
    named = {
        name: getattr(config, name)
        for name in inspect.signature(kind).parameters
        if hasattr(config, name)
    }
    return named | {name: value(config) for name, value in place.renamed.items()}


def version(package: str) -> str:
    """The installed version of a package, empty if it was never installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
