"""Whose code a checkpoint is compared with: the package it comes from, else our PyTorch twin."""

import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Mapping
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


def find_reference(network: Network) -> Reference:
    """The package's network in the precisions that it can do, the twin in those that are left.

    Raises UserError if there is neither, or if neither takes the weights.
    """
    modules: dict[str, torch.nn.Module] = {}
    names: dict[str, str] = {}
    refused: list[str] = []
    for place in (PACKAGES.get(network.source), TWINS.get(network.source)):
        kind = import_kind(place)
        if place is None or kind is None:
            continue
        try:
            made = {d: build(kind, place, network, d) for d in place.dtypes if d not in modules}
        except UserError as error:
            refused.append(str(error))
            continue
        modules |= made
        names |= dict.fromkeys(made, name_of(place))
    if not modules:
        raise UserError(refused[0] if refused else no_reference(network.source))
    for sentence in refused:
        print(f"note: {sentence}", file=sys.stderr)
    same = len(set(names.values())) == 1
    against = ", ".join(dict.fromkeys(n if same else f"{n} in {d}" for d, n in names.items()))
    return Reference(against, naming(network), modules)


def no_reference(source: str) -> str:
    """What is said where there is nothing to compare with."""
    package = PACKAGES.get(source)
    way_out = f": install the package {package.module.split('.')[0]}" if package else ""
    return f"there is no PyTorch network to compare {source} with{way_out}"


def import_kind(place: Place | None) -> Any:
    """The class at `place`, None if it is not installed."""
    try:
        return place and getattr(importlib.import_module(place.module), place.name)
    except ImportError:
        return None


def naming(network: Network) -> Source:
    """Whose names the PyTorch network's parameters have: Ho et al. themselves used TensorFlow."""
    return "torch_ref" if network.source == "ho" else network.source


def build(kind: Any, place: Place, network: Network, dtype: str) -> torch.nn.Module:
    """The network at `place` with the weights of `network`, computing in `dtype`.

    Raises UserError if it does not take the weights.
    """
    weights = to_state_dict(network.params, PEERS[naming(network)])
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    try:
        module: torch.nn.Module = kind(**arguments(kind, place, network.config))
        module.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name_of(place)} does not take these weights: {reason}") from error
    torch.nn.Module.to(module, getattr(torch, dtype))  # diffusers' own .to() says more than it does
    if dtype == "float64":
        place.to_double(module)
    return module.eval()


def name_of(place: Place) -> str:
    """The package and its version, or our module."""
    package = place.module.split(".")[0]
    return place.module if package == "torch_ref" else f"{package} {version(package)}".strip()


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
