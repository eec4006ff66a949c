"""A run on disk: its folder, configuration, checkpoints, metrics and averages."""

from jax_ddpm.runs.folder import (
    MAX_PIXELS,
    Run,
    describe,
    from_dict,
    holds_run,
    load,
    require_own_checkpoint,
    to_dict,
    write_config,
)
from jax_ddpm.runs.lock import Held, lock_folder
from jax_ddpm.runs.opening import (
    Opening,
    adopt,
    load_for_training,
    load_from_first_process,
    lock_for_training,
    open_for_training,
    remove_leftovers,
    require_free,
)

__all__ = [
    "MAX_PIXELS",
    "Held",
    "Opening",
    "Run",
    "adopt",
    "describe",
    "from_dict",
    "holds_run",
    "load",
    "load_for_training",
    "load_from_first_process",
    "lock_folder",
    "lock_for_training",
    "open_for_training",
    "remove_leftovers",
    "require_free",
    "require_own_checkpoint",
    "to_dict",
    "write_config",
]
