"""The configuration of a run: frozen dataclasses of plain values, presets, and their checks."""

from jax_ddpm.config.presets import PRESETS, find_preset
from jax_ddpm.config.run import (
    Config,
    DataConfig,
    DiffusionConfig,
    SampleConfig,
    SourceConfig,
    TrainConfig,
    validate,
)

__all__ = [
    "PRESETS",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "SampleConfig",
    "SourceConfig",
    "TrainConfig",
    "find_preset",
    "validate",
]
