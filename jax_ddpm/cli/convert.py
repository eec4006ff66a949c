"""The command line of conversions: weights from another implementation, or back to it."""

from collections.abc import Sequence

import tyro

from jax_ddpm.cli.parsing import parse, value_of
from jax_ddpm.config.presets import PRESET_OF, PRESETS
from jax_ddpm.config.run import Config
from jax_ddpm.jobs.convert import ImportArgs


def parse_import(args: Sequence[str], *, prog: str) -> ImportArgs:
    """The command line; what it leaves out is as in the preset of the implementation it names."""
    source = value_of("--source", args)
    preset = PRESETS[PRESET_OF[source]] if source in PRESET_OF else Config()
    default = ImportArgs(file=tyro.MISSING, source=tyro.MISSING, out=tyro.MISSING, settings=preset)
    return parse(ImportArgs, args, prog=prog, default=default)
