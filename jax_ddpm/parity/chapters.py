"""The chapters of a report: of the library, or of one checkpoint's network."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import jax.numpy as jnp
import numpy as np
import torch

from jax_ddpm.interop import Network, from_torch
from jax_ddpm.models.layers import timestep_embedding
from jax_ddpm.parity.network import network_pairs
from jax_ddpm.parity.peers import find_reference
from jax_ddpm.parity.process import forward_process, losses, schedule_tables
from jax_ddpm.parity.quantities import Pair, Part
from jax_ddpm.parity.sampling import chains, sampler_steps
from jax_ddpm.parity.training import lockstep
from jax_ddpm.parity.twins import twin_networks
from torch_ref.unet import timestep_embedding as ref_embedding

SLACK = 10.0
PartName = Literal["schedules", "process", "losses", "network", "steps", "chains", "training"]


def library_parts(names: tuple[str, ...]) -> list[Part]:
    """The chapters of the report on the library."""
    everything = [
        Part("schedules", "Noise schedules", "Every table of every schedule, T = 1000. In float32, "
             "each is the float64 table cast once.", "torch_ref", schedule_tables),
        Part("process", "Forward process", "The same images and noise through both, at t = 0, 1, "
             "250, 998 and 999 of the linear schedule.", "torch_ref", forward_process),
        Part("losses", "Training losses", "Per example, for every prediction type.", "torch_ref",
             losses),
        Part("network", "Network", "A small U-Net with the same random weights, run once: the "
             "output of every block on the way, so that later blocks also carry the rounding of "
             "earlier ones, and the gradient of the mean squared output with respect to the input "
             "and to every parameter.", "torch_ref", library_network),
        Part("steps", "Sampler steps", "One step from each of five levels, to the neighbour, over "
             "a jump and to the clean image, with the same noise.", "torch_ref", sampler_steps),
        Part("chains", "Whole chains", "From the same x_T with the same noise, through the same "
             "U-Net at every step; every image on the way is compared.", "torch_ref", chains),
        Part("training", "Training in lock-step", "From the same parameters on the same batches, "
             "timesteps and noise.", "torch_ref", lockstep),
    ]  # fmt: skip
    return [part for part in everything if part.name in names]


def library_network(dtype: str, seed: int) -> Iterator[Pair]:
    """The small U-Net of the tests as if its weights came from a file."""
    theirs, _, _ = twin_networks("float32", seed=seed)
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    network = from_torch(weights, "torch_ref", {"num_groups": 4, "dropout": 0.0})
    reference = find_reference(network)
    t = np.array([0, 1, 17, 417, 999])
    embeddings = (
        timestep_embedding(jnp.asarray(t), 128, dtype),
        ref_embedding(torch.from_numpy(t), 128, getattr(torch, dtype)).numpy(),
    )
    yield Pair("time", "sinusoidal embedding of t", "timestep embedding", *embeddings)
    yield from network_pairs(network, reference, "U-Net", dtype, seed)


def network_parts(network: Network) -> list[Part]:
    """The one chapter on a checkpoint."""
    reference = find_reference(network)
    text = (
        f"Random images at several t through the checkpoint's network as {reference.against} "
        "computes it and as ours: the output of every block that both have, and all gradients. "
        f"Where a network amplifies rounding, the tolerance is {SLACK:g} times PyTorch's own."
    )
    pairs = partial(network_pairs, network, reference, "given network")
    return [Part("network", "Network", text, reference.against, pairs, SLACK)]
