"""The small U-Net of the tests in both frameworks."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import torch

from jax_ddpm.interop import from_torch
from jax_ddpm.models.layers import timestep_embedding
from jax_ddpm.parity.network import pair_network
from jax_ddpm.parity.peers import find_reference
from jax_ddpm.parity.quantities import Pair
from jax_ddpm.parity.twins import make_twin_networks
from torch_ref import unet as ref


def pair_library_network(dtype: str, seed: int) -> Iterator[Pair]:
    """Pair the time embedding, and the small U-Net of the tests as if read from a weight file."""
    theirs, _, _ = make_twin_networks("float32", seed=seed)
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    network = from_torch(weights, "torch_ref", {"num_groups": 4, "dropout": 0.0})
    t = np.array([0, 1, 17, 417, 999])
    ours = timestep_embedding(jnp.asarray(t), 128, dtype)
    embedding = ref.timestep_embedding(torch.from_numpy(t), 128, getattr(torch, dtype)).numpy()
    yield Pair("time", "sinusoidal embedding of t", "timestep embedding", ours, embedding)
    yield from pair_network(network, find_reference(network), "U-Net", dtype, seed)
