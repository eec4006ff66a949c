import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_ddpm.config.jobs import CompareJob
from jax_ddpm.config.run import Config
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.compare_samplers import compare_samplers, list_samplers, most_steps, split_data
from jax_ddpm.models import PulferConfig
from jax_ddpm.process.distances import energy_distance
from jax_ddpm.samplers import SAMPLERS


@pytest.mark.parametrize(
    ("name", "evaluations", "steps"),
    [("ddim", 7, 7), ("heun", 7, 4), ("heun", 8, 4), ("plms", 7, 6), ("pndm", 10, 3)],
)
def test_a_sampler_takes_as_many_steps_as_the_evaluations_allow(name, evaluations, steps):
    assert most_steps(name, evaluations) == steps
    assert SAMPLERS[name].evaluations(steps + 1) > evaluations >= SAMPLERS[name].evaluations(steps)


def test_a_table_of_times_leaves_out_samplers_that_look_between_the_timesteps():
    left_out = {*list_samplers(Config())} - {*list_samplers(Config(model=PulferConfig()))}
    assert left_out == {"kdpm2", "kdpm2_ancestral", "dpmpp_sde"}


def test_too_few_evaluations_are_refused():
    with pytest.raises(UserError, match=r"--evaluations 0 is too few for heun: .* takes 1"):
        most_steps("heun", 0)


def test_the_data_is_split_into_parts_that_share_no_image():
    images = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
    data = split_data(ImageSource(images, None), 10)
    assert (data.reference.shape, [len(others) for others in data.others]) == ((30, 1), [10])
    assert len(np.unique(np.concatenate([data.reference, *data.others]))) == 40
    with pytest.raises(UserError, match=r"--num is 21, .* at most half the 40 images of the data"):
        split_data(ImageSource(images, None), 21)


@pytest.mark.slow
def test_the_figure_and_its_numbers_are_written(trained_run, tmp_path):
    job = CompareJob(
        samplers=("ddim", "heun"),
        evaluations=(5, 1),
        num=8,
        batch_size=8,
        out=tmp_path / "new" / "figure.png",
    )
    assert compare_samplers(trained_run, job) == job.out
    with Image.open(job.out) as figure:
        assert figure.format == "PNG"
    found = json.loads(job.out.with_suffix(".json").read_text())
    assert [list(curve) for curve in found["energy_distance"].values()] == [["1", "5"]] * 2
    # One step of either is the denoiser's first guess from the same noise, at its own first level.
    assert found["energy_distance"]["ddim"]["5"] != found["energy_distance"]["heun"]["5"]
    assert np.isfinite([*found["energy_distance"]["heun"].values()]).all()


def test_two_halves_of_the_data_are_no_further_apart_than_by_chance():
    images = np.random.default_rng(0).integers(0, 255, (200, 3, 3, 1), np.uint8)
    data = split_data(ImageSource(images, None), 100)
    assert abs(energy_distance(data.others[0], data.reference)) < 0.05  # measured: -0.009


@pytest.mark.usefixtures("unchecked_types")  # images of more than 256 values
def test_a_large_data_set_gives_several_groups():
    images = np.arange(5000, dtype=np.uint16).reshape(5000, 1, 1, 1)
    data = split_data(ImageSource(images, None), 100)
    assert (len(data.reference), [len(others) for others in data.others]) == (4000, [100] * 10)
    assert len(np.unique(np.concatenate([data.reference, *data.others]))) == 5000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"out": Path("numbers.json")},
            "--out is numbers.json, but it must be a file that ends in .png",
        ),
        ({"num": 1}, "--num is 1, .* at least 2"),
        ({"seed": -1}, "--seed is -1"),
        ({"evaluations": (9,)}, "between 1 and T = 8, got 9"),
    ],
)
def test_settings_that_cannot_work_are_refused(trained_run, settings, message):
    with pytest.raises(UserError, match=message):
        compare_samplers(trained_run, CompareJob(**settings))
