"""Presets are compared after the same time of training."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.config.presets import find_preset
from jax_ddpm.data.sources import open_source
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.bench.presets import (
    PresetsArgs,
    bench_presets,
    configure,
    format_markdown,
    shrink_before,
)
from jax_ddpm.jobs.features import make_fashion
from jax_ddpm.quality.classifier import SHAPE


@pytest.mark.parametrize("name", PresetsArgs().presets)
def test_every_preset_draws_with_the_same_sampler_and_trains_as_its_own(name):
    config = configure(name, PresetsArgs(steps=20, seed=3))
    sample = config.sample
    assert (sample.sampler, sample.num_steps, sample.spacing) == ("ddim", 20, "trailing")
    assert not sample.stretch
    assert config.preset == name and config.seed == 3


def test_presets_for_other_images_and_impossible_numbers_are_refused():
    with pytest.raises(UserError, match="--presets ddpm-cifar10 is for cifar10, not for the emb"):
        bench_presets(PresetsArgs(presets=("epita", "ddpm-cifar10")))
    with pytest.raises(UserError, match="--minutes is 0"):
        bench_presets(PresetsArgs(minutes=0))
    with pytest.raises(UserError, match="--num is 19, but it must be at least 20"):
        bench_presets(PresetsArgs(num=19))


@pytest.mark.slow
def test_large_images_in_colour_are_judged_as_small_grey_ones():
    """The same garments, enlarged to 32 x 32 in colour, have nearly the same features."""
    network = make_fashion(SHAPE)
    apply = shrink_before(network)
    small = jnp.asarray(open_source("embedded").images[:4])
    large = jnp.asarray(open_source("embedded", image_size=32, channels=3).images[:4])
    expected, found = (np.asarray(apply(network.params, images)[0]) for images in (small, large))
    np.testing.assert_array_equal(expected, network.apply(network.params, small)[0])
    error = np.abs(found - expected).mean() / np.abs(expected).mean()
    assert error < 0.1  # measured: 0.06


def test_the_table_is_markdown():
    row = {"preset": "epita", "steps": 1234, "of": 9380, "FD (x)": 56.78, "+-": 1.5}
    *_, last = format_markdown([row], PresetsArgs())
    assert last == "| `epita` | 1,234 of 9,380 | 56.8 +- 1.5 |"


@pytest.mark.slow
def test_the_command_trains_measures_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "found.json"
    args = PresetsArgs(presets=("fashion-cpu",), minutes=1e-3, num=20, steps=2, out=out)
    (row,) = bench_presets(args)
    assert 1 <= row["steps"] < 100 and row["of"] == find_preset("fashion-cpu").train.num_steps
    assert json.loads(out.read_text())["rows"] == [row]
    assert "| `fashion-cpu` | " in capsys.readouterr().out
