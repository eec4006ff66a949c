"""Whose code a checkpoint is compared with: the package it comes from, else our PyTorch twin."""

import importlib
import importlib.metadata
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch

from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, Network, Source, to_state_dict
from jax_ddpm.parity.network import Reference

Context = Callable[[torch.nn.Module], AbstractContextManager[Any]]


class Place(NamedTuple):
    """Where to find a network."""

    module: str
    name: str
    renamed: Mapping[str, Callable[[Any], Any]] = MappingProxyType({})
    """Arguments that our configuration has otherwise, from it."""
    in_double: Context = nullcontext
    """What lets code that asks for float32 by name follow a network in float64."""


@contextmanager
def diffusers_in_double(module: torch.nn.Module) -> Iterator[None]:
    """Its sinusoidal embedding is float32 whatever the network is."""
    with patch("diffusers.models.embeddings.get_timestep_embedding", diffusers_embedding):
        yield


def diffusers_embedding(
    timesteps: torch.Tensor, embedding_dim: int, flip_sin_to_cos: bool = False,
    downscale_freq_shift: float = 1, scale: float = 1, max_period: int = 10000,
) -> torch.Tensor:  # fmt: skip
    """diffusers' get_timestep_embedding in float64."""
    denominator = embedding_dim // 2 - downscale_freq_shift
    args = timesteps, embedding_dim, denominator, max_period
    return _sinusoids(*args, cos_first=flip_sin_to_cos, scale=scale)


@contextmanager
def openai_in_double(module: torch.nn.Module) -> Iterator[None]:
    """Its norms, softmax and sinusoidal embedding cast to float32 whatever the network is."""
    unet = sys.modules[type(module).__module__]
    with (
        patch.object(torch.Tensor, "float", torch.Tensor.double),
        patch.object(unet, "timestep_embedding", openai_embedding),
        patch.object(module, "dtype", torch.float64, create=True),
    ):
        yield


def openai_embedding(timesteps: torch.Tensor, dim: int, max_period: int = 10000) -> torch.Tensor:
    """OpenAI's timestep_embedding in float64."""
    return _sinusoids(timesteps, dim, dim // 2, max_period, cos_first=True)


def _sinusoids(
    t: torch.Tensor, dim: int, denominator: float, max_period: float, *, cos_first: bool,
    scale: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    index = torch.arange(dim // 2, dtype=torch.float64)
    angles = scale * t.double()[:, None] * torch.exp(-math.log(max_period) * index / denominator)
    parts = [angles.cos(), angles.sin()] if cos_first else [angles.sin(), angles.cos()]
    return torch.nn.functional.pad(torch.cat(parts, dim=1), (0, dim % 2))


PACKAGES: dict[str, Place] = {
    "lucidrains": Place("denoising_diffusion_pytorch", "Unet"),
    "diffusers": Place("diffusers", "UNet2DModel", in_double=diffusers_in_double),
    "guided_diffusion": Place(
        "guided_diffusion.unet",
        "UNetModel",
        {"image_size": lambda config: config.example_shape[0]},
        openai_in_double,
    ),
    "improved_diffusion": Place("improved_diffusion.unet", "UNetModel", in_double=openai_in_double),
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
    """The network of the package that its weights come from, else of our twin.

    Raises UserError if there is neither, or if neither takes the weights.
    """
    refused: list[str] = []
    for place in (PACKAGES.get(network.source), TWINS.get(network.source)):
        kind = import_kind(place)
        if place is not None and kind is not None:
            try:
                module = build(kind, place, network)
            except UserError as error:
                refused.append(str(error))
                continue
            for sentence in refused:
                print(f"note: {sentence}", file=sys.stderr)
            return Reference(name_of(place), naming(network), module, place.in_double)
    raise UserError(refused[0] if refused else no_reference(network.source))


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


def build(kind: Any, place: Place, network: Network) -> torch.nn.Module:
    """The network at `place`, in float32 and evaluation mode, with the weights of `network`.

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
