import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jax_ddpm import runs
from jax_ddpm.config.jobs import CompareJob
from jax_ddpm.config.run import Config
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.compare_samplers import (
    Case,
    compare_samplers,
    draw_cases,
    list_samplers,
    most_steps,
    pad_levels,
    skip_padding,
)
from jax_ddpm.jobs.generate import generate_images, make_generate_fn
from jax_ddpm.jobs.parameters import load_params
from jax_ddpm.models import PulferConfig
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.process.types import Prediction
from jax_ddpm.samplers import SAMPLERS, SamplerState, ddim


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
    assert found["distance"] == "energy distance between pixels"
    curves = found["samplers"]
    assert [list(curve) for curve in curves.values()] == [["1", "5"]] * 2
    # One step of either is the denoiser's first guess from the same noise.
    assert curves["ddim"]["1"] == pytest.approx(curves["heun"]["1"], rel=0.05)
    assert curves["ddim"]["5"] != curves["heun"]["5"]
    assert np.isfinite([*curves["heun"].values()]).all()


@pytest.mark.slow
@pytest.mark.guard
def test_cases_share_programs_and_draw_the_images_of_their_sampler(trained_run):
    """Several numbers of steps run in one program, whose first steps then do nothing."""
    run = runs.load(trained_run)
    parts = build(run.config, run.image_shape)
    params, _ = load_params(run, parts)
    job = CompareJob(num=4, batch_size=4)
    cases = [
        Case("ddim", n, replace(run.config.sample, sampler="ddim", num_steps=n)) for n in (2, 4)
    ]
    for case, images in draw_cases(parts, params, run.image_shape, cases, job):
        program = make_generate_fn(parts, case.settings, run.image_shape)
        (alone,) = generate_images(program, params, 4, num_labels=parts.num_labels)
        differences = np.abs(images.astype(int) - alone.images)
        assert differences.max() <= 1  # measured: 0


def test_a_step_from_a_level_to_itself_does_nothing():
    levels = pad_levels(level_at(named_schedule("cosine", 100), np.array([99, 49, -1])), 4)
    assert levels.t.tolist() == [99, 99, 99, 49, -1]
    x = jnp.ones((1, 2, 2, 1))
    same, halved = (jax.tree.map(lambda a, i=i: a[i], levels) for i in (0, 3))
    sampler = skip_padding(ddim())
    for nxt, moves in ((same, False), (halved, True)):
        state, _ = sampler.step(SamplerState(x), x, same, nxt, lambda x_t, _: Prediction(x_t, x_t))
        assert bool(jnp.all(state.x_t == x)) != moves


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
