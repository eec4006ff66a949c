"""Make the same arrays, networks, parameters, gradients and noise in both frameworks."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import numpy as np
import torch

from jax_ddpm.interop import PEERS, from_state_dict
from jax_ddpm.models import NetworkFns, UNetConfig, make_network
from torch_ref.unet import UNet as TorchUNet

TINY = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attn_levels": (1,)}


def to_jax(tensor: torch.Tensor) -> np.ndarray:
    """Convert an NCHW tensor to an NHWC array; other shapes stay as they are."""
    array = tensor.detach().numpy()
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Convert an NHWC array to an NCHW tensor; other shapes stay as they are."""
    array = np.moveaxis(array, -1, 1) if array.ndim == 4 else array
    return torch.from_numpy(np.array(array))


def draws(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    """Draw standard normal numbers: the same float64 numbers, cast to `dtype`."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def make_twin_networks(
    dtype: str, *, seed: int = 0, channels: int = 3, **kwargs: Any
) -> tuple[torch.nn.Module, NetworkFns, Any]:
    """Make one network twice: (PyTorch module in evaluation mode, our network, its parameters).

    Random numbers are added to the initial parameters, so that layers that start at zero take part.
    """
    config: dict[str, Any] = {**TINY, "dropout": 0.0, "num_groups": 4, **kwargs}
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        theirs = TorchUNet(in_channels=channels, out_channels=channels, **config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.add_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    theirs = theirs.to(getattr(torch, dtype)).eval()
    network = make_network(UNetConfig(**config), (8, 8, channels), dtype=dtype)
    return theirs, network, convert_params(theirs, network)


def convert_params(theirs: torch.nn.Module, network: NetworkFns) -> Any:
    """Convert the parameters of a torch_ref network to our layout."""
    return convert_tree({name: p for name, p in theirs.named_parameters()}, network)


def convert_tree(tensors: Mapping[str, torch.Tensor], network: NetworkFns) -> Any:
    """Convert tensors by parameter name (parameters, gradients or moments) to a tree like ours."""
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())
    numbers = np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors.values()])
    return jax.tree.map(lambda origin: numbers[origin], _find_origins(network, shapes))


@cache
def _find_origins(network: NetworkFns, shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Any:
    """Find, for each number in our parameters, its position among all numbers of theirs."""
    ends = np.cumsum([math.prod(shape) for _, shape in shapes])
    arrays = {
        name: np.arange(end - math.prod(shape), end).reshape(shape)
        for (name, shape), end in zip(shapes, ends, strict=True)
    }
    like = jax.eval_shape(network.init, jax.random.key(0))
    return from_state_dict(arrays, PEERS["torch_ref"], like)
