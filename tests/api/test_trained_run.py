"""`load_run` draws what the command line draws, and compiles once."""

import inspect
from dataclasses import replace

import jax
import numpy as np
import pytest

import jax_ddpm as jd
from jax_ddpm.config.jobs import SampleJob
from jax_ddpm.jobs.sample import sample_run
from tests.shared.docstrings import run_examples

GUARD = (pytest.mark.slow, pytest.mark.guard)
pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def run(trained_run):
    return jd.load_run(trained_run)


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"sampler": "dpmpp_2m", "steps": 3}, marks=GUARD),
        pytest.param({"eta": 0.5, "clip_x_0": False}, marks=GUARD),
    ],
)
def test_its_images_equal_the_commands_bit_for_bit(run, trained_run, tmp_path, settings):
    job = SampleJob(6, out=tmp_path / "images.npz", seed=3, batch_size=4)
    with np.load(sample_run(trained_run, job, settings)) as arrays:
        expected = arrays["arr_0"]
    found = run.sample(6, seed=3, batch_size=4, **settings)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_its_history_holds_the_rows_that_were_logged(run):
    assert [row.step for row in run.history] == [3, 6, 9, 12]
    assert all(row.loss > 0 and row.mse is None for row in run.history)


def test_a_second_call_compiles_nothing(run):
    traces = []

    def count_trace(*args, **kwargs):
        traces.append(1)
        return run.apply_fn(*args, **kwargs)

    counted = replace(
        run, parts=run.parts._replace(network=run.parts.network._replace(apply_fn=count_trace))
    )
    counted.sample(4, steps=2)
    assert traces
    traces.clear()
    counted.sample(4, steps=2, seed=7)
    assert not traces
    counted.sample(4, steps=3)
    assert traces


@pytest.mark.slow
@pytest.mark.guard
def test_its_diffusion_draws_the_same_images(run):
    arguments = (run.apply_fn, run.params, jax.random.key(0), (6, *run.image_shape))
    images = run.diffusion.sample(*arguments, sampler="ddim", steps=4, spacing="trailing")
    difference = run.sample(6).astype(int) - jd.to_uint8(images)
    assert np.abs(difference).max() <= 1  # rounding; measured: 0


def test_its_repr_describes_it_in_one_line(run, trained_run):
    what = "ema parameters of step 12; UNet with 2,801 parameters, images of 8x8x1"
    assert repr(run) == f"TrainedRun({trained_run}: {what})"
    assert run.prediction_type == "eps"
    assert run.schedule.num_timesteps == 8
    assert run.image_shape == (8, 8, 1)
    assert run.config.train.num_steps == 12


@pytest.mark.slow
@pytest.mark.guard
def test_the_weights_can_be_chosen(run, trained_run):
    raw, same = (jd.load_run(trained_run, weights=weights) for weights in ("raw", 0.9))
    assert (raw.sample(4) != run.sample(4)).any()
    np.testing.assert_array_equal(same.sample(4), run.sample(4))


@pytest.mark.slow
@pytest.mark.guard
def test_an_earlier_checkpoint_can_be_loaded_by_its_step(trained_run):
    assert "ema parameters of step 6;" in repr(jd.load_run(trained_run, checkpoint=6))
    with pytest.raises(jd.UserError, match=r"^checkpoint 7: .* steps 6, 12"):
        jd.load_run(trained_run, checkpoint=7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 3}, "did you mean 'steps'"),
        ({"sampler": "ddmi"}, "^sampler is 'ddmi', but it must be ddpm, ddim"),
        ({"steps": 9}, "^steps 9: .* between 1 and T = 8"),
        ({"label": 3}, "^label 3: this run was trained without labels"),
        ({"guidance": 2.0}, "^guidance 2: this run was trained without label dropout"),
        ({"seed": -1}, "^seed is -1"),
        ({"num": 0}, "^num is 0, but it must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(run, settings, message):
    with pytest.raises(jd.UserError, match=message):
        run.sample(**settings)


@pytest.mark.usefixtures("unchecked_types")
def test_weights_that_a_run_does_not_have_are_refused(trained_run, tmp_path):
    for weights, message in {
        "emma": "^weights is emma, but this run has",
        0.5: "^weights is 0.5",
    }.items():
        with pytest.raises(jd.UserError, match=message):
            jd.load_run(trained_run, weights=weights)
    with pytest.raises(jd.UserError, match=r"checkpoint is .bets., .* did you mean .best."):
        inspect.unwrap(jd.load_run)(trained_run, checkpoint="bets")
    with pytest.raises(jd.UserError, match="is not a run folder"):
        jd.load_run(tmp_path)


def test_the_example_in_its_docstring_runs(trained_run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "fashion-cpu").symlink_to(trained_run)
    monkeypatch.chdir(tmp_path)
    assert "pictures" in run_examples(jd.load_run)
