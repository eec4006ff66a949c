"""Weights of other implementations: a table of names for each, one strict reader for all."""

from jax_ddpm.interop.network import PEERS, Network, PeerName, from_torch, to_torch
from jax_ddpm.interop.state_dict import from_state_dict, to_state_dict
from jax_ddpm.interop.tree import WeightsName

__all__ = [
    "PEERS",
    "Network",
    "PeerName",
    "WeightsName",
    "from_state_dict",
    "from_torch",
    "to_state_dict",
    "to_torch",
]
