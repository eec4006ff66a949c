"""Weights of other implementations: a table of names per peer, one strict reader for all."""

from jax_ddpm.interop.state_dict import from_state_dict
from jax_ddpm.interop.tables import TABLES, SourceName

__all__ = ["TABLES", "SourceName", "from_state_dict"]
