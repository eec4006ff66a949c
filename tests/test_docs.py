"""Every setting of the toolbox is in the documents."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from jax_ddpm.config import DiffusionConfig, TrainConfig
from jax_ddpm.evaluation.command import EvaluateArgs
from jax_ddpm.evaluation.compare import CompareArgs
from jax_ddpm.generate import SampleArgs

DOCS = Path(__file__).parents[1] / "docs"
TEXT = "".join((DOCS / name).read_text() for name in ("toolbox.md", "ema.md"))
POSITIONAL = {"run"}


def flags(kind, prefix="--", keep=lambda name: True):
    names = [f.name for f in fields(kind) if f.name not in POSITIONAL and keep(f.name)]
    return [prefix + name.replace("_", "-") for name in names]


@pytest.mark.parametrize(
    "flag",
    [
        *flags(DiffusionConfig, "--diffusion."),
        *flags(TrainConfig, "--train.", lambda name: "ema" in name or "snapshot" in name),
        *flags(SampleArgs),
        *flags(EvaluateArgs),
        *flags(CompareArgs),
    ],
)
def test_every_flag_is_documented(flag):
    assert re.search(re.escape(flag) + r"(?![\w.-])", TEXT), f"{flag} is in none of the documents"
