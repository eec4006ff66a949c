"""Find the code to compare a checkpoint with: the package it comes from, or our PyTorch twin."""

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
from jax_ddpm.interop import PEERS, Network, PeerName, to_state_dict
from jax_ddpm.interop.peer import Peer
from jax_ddpm.models import Architecture
from jax_ddpm.parity.network import Reference

Context = Callable[[torch.nn.Module], AbstractContextManager[Any]]


class Location(NamedTuple):
    """Where to find a network class, and how to use it."""

    module: str
    name: str
    renamed: Mapping[str, Callable[[Any], Any]] = MappingProxyType({})
    """Arguments that our configuration lacks, each with a function to compute it from ours."""
    in_float64: Context = nullcontext
    """A context in which code that would cast to float32 computes in float64."""


@contextmanager
def diffusers_in_float64(module: torch.nn.Module) -> Iterator[None]:
    """Replace the sinusoidal embedding, which is float32 even in a float64 network."""
    with patch("diffusers.models.embeddings.get_timestep_embedding", embed_as_diffusers):
        yield


def embed_as_diffusers(
    timesteps: torch.Tensor,
    embedding_dim: int,
    flip_sin_to_cos: bool = False,
    downscale_freq_shift: float = 1,
    scale: float = 1,
    max_period: int = 10000,
) -> torch.Tensor:
    """diffusers' get_timestep_embedding in float64."""
    denominator = embedding_dim // 2 - downscale_freq_shift
    args = scale * timesteps.double(), embedding_dim, denominator, max_period
    return _embed(*args, cos_first=flip_sin_to_cos)


@contextmanager
def openai_in_float64(module: torch.nn.Module) -> Iterator[None]:
    """Replace the casts to float32 of the norms, the softmax and the sinusoidal embedding."""
    unet = sys.modules[type(module).__module__]
    with (
        patch.object(torch.Tensor, "float", torch.Tensor.double),
        patch.object(unet, "timestep_embedding", embed_as_openai),
        patch.object(module, "dtype", torch.float64, create=True),
    ):
        yield


@contextmanager
def monai_in_float64(module: torch.nn.Module) -> Iterator[None]:
    """Replace the sinusoidal embedding, which is float32 even in a float64 network."""
    unet = sys.modules[type(module).__module__]
    with patch.object(unet, "get_timestep_embedding", embed_as_openai):
        yield


def embed_as_openai(timesteps: torch.Tensor, dim: int, max_period: int = 10000) -> torch.Tensor:
    """OpenAI's timestep_embedding in float64."""
    return _embed(timesteps.double(), dim, dim // 2, max_period, cos_first=True)


def _embed(
    t: torch.Tensor, dim: int, denominator: float, max_period: float, *, cos_first: bool
) -> torch.Tensor:
    index = torch.arange(dim // 2, dtype=torch.float64)
    angles = t[:, None] * torch.exp(-math.log(max_period) * index / denominator)
    parts = [angles.cos(), angles.sin()] if cos_first else [angles.sin(), angles.cos()]
    return torch.nn.functional.pad(torch.cat(parts, dim=1), (0, dim % 2))


PACKAGES: dict[str, Location] = {
    "lucidrains": Location("denoising_diffusion_pytorch", "Unet"),
    "diffusers": Location("diffusers", "UNet2DModel", in_float64=diffusers_in_float64),
    "guided_diffusion": Location(
        "guided_diffusion.unet",
        "UNetModel",
        {"image_size": lambda config: config.example_shape[0]},
        openai_in_float64,
    ),
    "improved_diffusion": Location(
        "improved_diffusion.unet", "UNetModel", in_float64=openai_in_float64
    ),
    "monai": Location(
        "monai.networks.nets.diffusion_model_unet",
        "DiffusionModelUNet",
        in_float64=monai_in_float64,
    ),
}
ANNOTATED = Location(
    "torch_ref.annotated", "AnnotatedUNet", {"layer": lambda config: config.norm == "layer"}
)
TWINS: dict[str, Location] = {
    "torch_ref": Location("torch_ref.unet", "UNet"),
    "ho": Location("torch_ref.unet", "UNet"),
    "pesser": Location("torch_ref.unet", "UNet"),
    "lucidrains": Location("torch_ref.lucidrains", "LucidrainsUNet"),
    "annotated": ANNOTATED,
    "annotated_layernorm": ANNOTATED,
    "epita": ANNOTATED,
    "annotated_ws": Location(
        "torch_ref.annotated_ws",
        "AnnotatedWSUNet",
        {"divide": lambda config: config.weight_standardization == "divide"},
    ),
    "guided_diffusion": Location("torch_ref.openai", "UNetModel"),
    "improved_diffusion": Location("torch_ref.openai", "UNetModel"),
    "pulfer": Location("torch_ref.pulfer", "PulferUNet"),
}


def find_reference(network: Network) -> Reference:
    """Find the network in PyTorch: in the package that the weights come from, or our twin.

    Raises UserError if there is neither, or if neither accepts the weights.
    """
    refused: list[str] = []
    for location in (PACKAGES.get(network.source), TWINS.get(network.source)):
        network_class = import_class(location)
        if location is not None and network_class is not None:
            try:
                module = build_network(network_class, location, network)
            except UserError as error:
                refused.append(str(error))
                continue
            for sentence in refused:
                print(f"note: {sentence}", file=sys.stderr)
            source = find_naming(network)
            return Reference(describe(location), source, module, location.in_float64)
    older = PEERS[network.source].of(network.config) is not PEERS[network.source]
    raise UserError(refused[0] if refused and not older else explain_missing(network.source, older))


def explain_missing(source: str, older: bool = False) -> str:
    """Explain that there is nothing to compare a source, or an `older` release of it, with."""
    package = PACKAGES.get(source)
    if older:
        return f"this is the network of an older release of {source}: install that release"
    way_out = f": install the package {package.module.split('.')[0]}" if package else ""
    return f"there is no PyTorch network to compare {source} with{way_out}"


def import_class(location: Location | None) -> Any:
    """Import the network class at `location`; None if it is not installed."""
    try:
        return location and getattr(importlib.import_module(location.module), location.name)
    except ImportError:
        return None


def find_naming(network: Network) -> PeerName:
    """The source whose parameter names the PyTorch network uses: torch_ref for its own twins."""
    return "torch_ref" if network.source in ("ho", "pesser") else network.source


def build_network(network_class: Any, location: Location, network: Network) -> torch.nn.Module:
    """Build a `network_class` in float32 and evaluation mode, with the weights of `network`.

    Raises UserError if it does not accept the weights.
    """
    peer = PEERS[find_naming(network)].of(network.config)
    weights = to_state_dict(network.params, peer)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    try:
        arguments = choose_arguments(network_class, location, network.config, peer)
        module: torch.nn.Module = network_class(**arguments)
        module.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{describe(location)} does not accept these weights: {reason}") from error
    return module.eval()


def describe(location: Location) -> str:
    """Name the package and its version, or our module."""
    package = location.module.split(".")[0]
    if package == "torch_ref":
        return location.module
    return f"{package} {find_version(package)}".strip()


def choose_arguments(
    network_class: Any, location: Location, config: Architecture, peer: Peer
) -> dict[str, Any]:
    """Choose the constructor's arguments: our settings of the same name, theirs, and `renamed`."""
    taken = inspect.signature(network_class).parameters
    theirs = peer.list_arguments(config, config.example_shape)
    named = {name: value for name, value in theirs.items() if name in taken}
    ours = {name: getattr(config, name) for name in taken if hasattr(config, name)}
    return named | ours | {name: value(config) for name, value in location.renamed.items()}


def find_version(package: str) -> str:
    """Find the installed version of a package; empty if it is only on the path."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
