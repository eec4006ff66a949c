"""Every setting of the toolbox is in the documents."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from jax_ddpm.config.run import DataConfig, DiffusionConfig, TrainConfig
from jax_ddpm.data.emoji import EmojiArgs
from jax_ddpm.devices.processes import Launch
from jax_ddpm.jobs.compare_samplers import CompareArgs
from jax_ddpm.jobs.evaluate import EvaluateArgs
from jax_ddpm.jobs.prepare_data import PrepareArgs
from jax_ddpm.jobs.sample import SampleArgs

DOCS = Path(__file__).parents[1] / "docs"
TEXT = "".join(path.read_text() for path in sorted(DOCS.glob("*.md")))
POSITIONAL = {"run"}


def flags(kind, prefix="--", keep=lambda name: True):
    names = [f.name for f in fields(kind) if f.name not in POSITIONAL and keep(f.name)]
    return [prefix + name.replace("_", "-") for name in names]


@pytest.mark.parametrize(
    "flag",
    [
        *flags(DataConfig, "--data."),
        *flags(PrepareArgs),
        *flags(EmojiArgs),
        *flags(DiffusionConfig, "--diffusion."),
        *flags(TrainConfig, "--train.", lambda name: "ema" in name or "snapshot" in name),
        "--train.parallel",
        "--train.fsdp",
        *flags(Launch),
        *flags(SampleArgs),
        *flags(EvaluateArgs),
        *flags(CompareArgs),
    ],
)
def test_every_flag_is_documented(flag):
    assert re.search(re.escape(flag) + r"(?![\w.-])", TEXT), f"{flag} is in none of the documents"


def test_the_example_of_the_data_page_runs():
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "data.md").read_text(), re.DOTALL)
    exec(block, {})
