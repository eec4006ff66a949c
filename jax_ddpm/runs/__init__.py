"""A run on disk: its folder, configuration, checkpoints, metrics and averages."""

from jax_ddpm.runs.folder import (
    MAX_PIXELS,
    Run,
    describe,
    from_dict,
    load,
    load_for_training,
    load_from_first_process,
    lock_folder,
    lock_for_training,
    open_for_training,
    remove_leftovers,
    require_free,
    to_dict,
    write_config,
)

__all__ = [
    "MAX_PIXELS",
    "Run",
    "describe",
    "from_dict",
    "load",
    "load_for_training",
    "load_from_first_process",
    "lock_folder",
    "lock_for_training",
    "open_for_training",
    "remove_leftovers",
    "require_free",
    "to_dict",
    "write_config",
]
