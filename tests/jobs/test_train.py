import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jax_ddpm
from jax_ddpm.data.loader import batch_indices
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.errors import Stopped, UserError
from jax_ddpm.jobs import train as loop
from jax_ddpm.jobs import train_setup
from jax_ddpm.jobs.build import build
from jax_ddpm.models import CustomConfig
from jax_ddpm.runs import metrics
from jax_ddpm.runs.folder import load
from tests.shared.compared_runs import assert_same_run, list_saved_steps, load_newest_state
from tests.shared.long_tests import mark_others_long
from tests.shared.processes import make_flags


def test_a_finished_run_holds_every_file(trained_run):
    names = {path.name for path in trained_run.iterdir()}
    files = {"config.json", "metrics.jsonl", "samples.png", "sampling.gif", "loss.png", "lock"}
    files |= {"report.html", "calls.jsonl"}
    assert names == files | {"tensorboard", "checkpoints", "samples"}
    grids = sorted(path.name for path in (trained_run / "samples").iterdir())
    assert grids == ["step_0000006.png", "step_0000012.png"]
    assert list_saved_steps(trained_run) == [6, 12]
    with (
        Image.open(trained_run / "samples.png") as grid,
        Image.open(trained_run / "loss.png") as loss,
    ):
        assert (grid.mode, loss.format) == ("L", "PNG")
    with Image.open(trained_run / "sampling.gif") as gif:
        assert gif.n_frames == 5  # noise and four steps


@pytest.mark.slow
@pytest.mark.guard
def test_epochs_end_with_a_grid_and_a_checkpoint_and_the_images_are_opened_once(
    make_config, tmp_path, monkeypatch
):
    """40 images in batches of 8 are 5 steps; the run resumes, and knows when it is finished."""
    opened = []
    open_data = loop.open_training_data
    monkeypatch.setattr(
        loop, "open_training_data", lambda config: opened.append(1) or open_data(config)
    )
    config = make_config(tmp_path / "run", train={"num_epochs": 2})
    with pytest.raises(Stopped):
        loop.train(replace(config, train=replace(config.train, max_steps=7)))
    run = loop.train(config)
    assert len(opened) == 2
    assert run.config.train.num_steps == 10
    assert loop.train(config) == run  # it is finished
    grids = sorted(path.name for path in (run.folder / "samples").iterdir())
    assert grids == ["step_0000005.png", "step_0000010.png"]
    assert list_saved_steps(run.folder) == [7, 10]  # the newest two
    assert [row.step for row in metrics.read(run.metrics)][-1] == 10


def test_metrics_have_a_row_per_window_with_the_learning_rate_that_was_used(
    trained_run, make_config
):
    rows = metrics.read(trained_run / "metrics.jsonl")
    assert [row.step for row in rows] == [3, 6, 9, 12]
    assert all(0 < row.loss < 10 and 0 < row.grad_norm < 100 for row in rows)
    assert rows[0].learning_rate == pytest.approx(
        1e-2 * 2 / 4
    )  # the third step of four warm-up steps
    assert rows[-1].learning_rate < 1e-3


@pytest.mark.slow
def test_a_hybrid_loss_is_logged_with_its_terms(make_config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    hybrid = {"objective": "hybrid", "variance": "learned_range"}
    run = loop.train(make_config(tmp_path / "run", diffusion=hybrid))
    rows = metrics.read(run.metrics)
    assert len(rows) == 4
    for row in rows:
        assert row.mse > 0 and row.vb != 0
        assert row.mse + row.vb == pytest.approx(row.loss, rel=1e-5)  # float32 sums
    events = EventAccumulator(str(run.tensorboard))
    events.Reload()
    assert {"loss", "mse", "vb"} <= set(events.Tags()["scalars"])


def test_tensorboard_shows_the_same_numbers_and_the_samples(trained_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained_run / "tensorboard"))
    events.Reload()
    rows = metrics.read(trained_run / "metrics.jsonl")
    for name in ("loss", "grad_norm", "learning_rate"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(row.step, pytest.approx(getattr(row, name), rel=1e-6)) for row in rows]
        assert shown == expected
    assert [event.step for event in events.Images("samples")] == [6, 12]


COMMAND = """
import sys
from jax_ddpm.cli import train
from jax_ddpm.data import tfds_reader
from jax_ddpm.jobs import evaluate, sample

train.run(sys.argv[1:])
print("Loaded:", sorted({"torch", "tensorflow", "tensorboardX"} & sys.modules.keys()))
"""


@pytest.mark.slow
@pytest.mark.guard
def test_a_training_process_loads_no_other_framework_and_says_what_comes_next(
    make_config, trained_run, tmp_path, compile_once
):
    """The run has the settings of `trained_run`, so its programs are compiled already."""
    config = make_config(tmp_path / "run")
    environment = os.environ | {
        "JAX_ENABLE_X64": "1",
        "JAX_COMPILATION_CACHE_DIR": str(compile_once),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(Path(jax_ddpm.__file__).parents[1]),
    }
    command = [sys.executable, "-c", COMMAND, *make_flags(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Loaded: []" in done.stdout
    assert "Finished: 12 steps, " in done.stdout
    assert f"Look at {config.run / 'samples.png'}" in done.stdout
    for command in ("sample", "evaluate", "train --preset fashion-cpu --train.init-from"):
        assert f"jax-ddpm {command} {config.run}" in done.stdout
    assert "12/12" in done.stderr  # the progress bar
    assert "Traceback" not in done.stderr
    assert_same_run(config.run, trained_run)


def test_training_changes_the_parameters_and_the_average_follows(trained_run):
    state = load_newest_state(trained_run)
    raw = {k.removeprefix(".params"): v for k, v in state.items() if k.startswith(".params")}
    ema = {
        k.removeprefix(".ema_params"): v for k, v in state.items() if k.startswith(".ema_params")
    }
    assert raw.keys() == ema.keys()
    assert all(np.all(np.isfinite(value)) for value in state.values())
    assert any(np.abs(raw[name] - ema[name]).max() > 1e-3 for name in raw)


def test_a_finished_run_started_again_does_nothing_and_says_so_at_once(
    make_config, trained_run, tmp_path, monkeypatch, capsys
):
    def refuse(*args, **kwargs):
        raise AssertionError("data were opened, or a network was built")

    before = {path: path.stat().st_mtime_ns for path in trained_run.rglob("*") if path.is_file()}
    for name in ("open_training_data", "build"):
        monkeypatch.setattr(loop, name, refuse)
    run = loop.train(make_config(trained_run))
    out = capsys.readouterr().out
    assert run.folder == trained_run
    assert f"{trained_run} is finished: all 12 steps are done" in out
    assert "Finished: 12 steps, " in out and f"Look at {trained_run / 'samples.png'}" in out
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_missing_pictures_of_a_finished_run_are_drawn_again(make_config, tmp_path, trained_run):
    folder = tmp_path / "copy"
    shutil.copytree(trained_run, folder)
    for name in ("loss.png", "samples.png", "sampling.gif"):
        (folder / name).unlink()
    loop.train(make_config(folder))
    assert_same_run(folder, trained_run)


@pytest.mark.slow
@pytest.mark.guard
def test_any_images_and_any_network_are_trained(make_config, tmp_path):
    """From arrays and a pair of functions, with a stop in between."""
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
    source = ImageSource(images, np.zeros(20, np.int64))

    def apply_fn(params, x_t, t):
        return x_t @ params["w"]

    network = (lambda key: {"w": jax.random.normal(key, (3, 3))}), apply_fn
    config = replace(make_config(tmp_path / "own", train={"max_steps": 7}), model=CustomConfig())
    parts = build(config, source.image_shape, network=network)
    with pytest.raises(Stopped):
        loop.train_run(config, source, parts)
    run = loop.train_run(config, source, parts)
    assert list_saved_steps(run.folder) == [7, 12]
    assert run.final_grid.exists()
    assert load(run.folder).config.model == CustomConfig()
    with pytest.raises(UserError, match="a network of your own"):
        build(run.config, run.image_shape)


def test_a_batch_larger_than_the_data_set_is_refused_before_anything_is_written(
    make_config, tmp_path
):
    with pytest.raises(UserError, match=r"--train.batch-size 41 .* 40 images"):
        loop.train(make_config(tmp_path / "run", train={"batch_size": 41}))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_eight_devices_train_the_same_run_as_one(trained_run, make_config, tmp_path):
    folder = tmp_path / "pmap"
    loop.train(make_config(folder, train={"parallel": "pmap"}))
    rows, expected = (metrics.read(f / "metrics.jsonl") for f in (folder, trained_run))
    # Measured: 7e-8 relative, after twelve steps of Adam in float32.
    for row, other in zip(rows, expected, strict=True):
        measured = [field for field in row._fields if getattr(other, field) is not None]
        found, right = ([getattr(r, field) for field in measured] for r in (row, other))
        np.testing.assert_allclose(found, right, rtol=1e-5)


def spoil(monkeypatch, is_bad):
    """Make the images NaN in the steps (0, 1, ...) for which `is_bad` is true."""
    make_update = train_setup.make_update

    def spoiled(*args, **kwargs):
        update = make_update(*args, **kwargs)

        def with_nan(state, x_0, *rest, **more):
            return update(state, jnp.where(is_bad(state.step), jnp.nan, x_0), *rest, **more)

        return with_nan

    monkeypatch.setattr(train_setup, "make_update", spoiled)


@pytest.mark.slow
def test_bad_steps_are_skipped_and_too_many_in_a_row_end_the_run_with_the_last_good_state(
    make_config, tmp_path, monkeypatch, capsys
):
    config = make_config(tmp_path / "nan", train={"max_bad_steps": 2})
    with monkeypatch.context() as patch:
        spoil(patch, lambda step: (step == 4) | (step >= 7))
        with pytest.raises(UserError) as caught:
            loop.train(config)
    images = ", ".join(map(str, batch_indices(40, 8, 0, 7)))
    for part in ("2 steps in a row, 8 to 9,", "checkpoint 9", "--train.learning-rate", images):
        assert part in str(caught.value)
    assert "compute-dtype" not in str(caught.value)  # it is float32 already
    assert "1 of the 3 steps up to step 6 were skipped" in capsys.readouterr().out
    assert list_saved_steps(config.run) == [6, 9]
    state = load_newest_state(config.run)
    assert all(np.all(np.isfinite(array)) for array in state.values())
    counters = [state[f".{name}"] for name in ("skipped.total", "skipped.in_a_row", "step")]
    assert counters == [3, 2, 9]
    counts = [value for name, value in state.items() if name.endswith(".count")]
    assert counts and all(count == 6 for count in counts)  # the learning rate does not move on

    run = loop.train(config)  # continues from the last good state
    rows = metrics.read(run.metrics)
    assert [row.skipped for row in rows] == [0, 1, 2, 0]
    assert all(math.isfinite(row.loss) and math.isfinite(row.grad_norm) for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [
        {"data_on_device": "never"},
        pytest.param({"steps_per_call": 3}, marks=pytest.mark.long),
        {"steps_per_call": 3, "data_on_device": "never"},
        pytest.param({"remat": "nothing_saveable"}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_steps_per_call_remat_and_data_on_devices_change_nothing(
    trained_run, make_config, tmp_path, train
):
    """The run also stops within a call, and resumes with default settings."""
    folder = tmp_path / "run"
    with pytest.raises(Stopped, match="after step 5"):
        loop.train(make_config(folder, train=train | {"max_steps": 5}))
    loop.train(make_config(folder))
    found, expected = load_newest_state(folder), load_newest_state(trained_run)
    worst = max(np.abs(found[leaf] - array).max() for leaf, array in expected.items())
    # Measured: 0 if only the data are in another place; otherwise 1e-4, because Adam amplifies the
    # rounding noise of gradients near zero to steps of 0.01.
    assert worst <= (0 if train == {"data_on_device": "never"} else 1e-3)


OBJECTIVES = {
    "antithetic p2": {"timestep_sampling": "antithetic", "weighting": "p2"},
    "dropped labels": {
        "label_dropout": 0.3,
        "timestep_sampling": "log_normal",
        "weighting": "soft_min_snr",
    },
    "importance bound": {
        "timestep_sampling": "importance",
        "objective": "vlb",
        "variance": "learned_range",
    },
    "pure noise x_0": {
        "zero_terminal_snr": True,
        "prediction_type": "x_0",
        "weighting": "truncated_snr",
    },
    "pure noise v": {"zero_terminal_snr": True, "prediction_type": "v"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    mark_others_long(OBJECTIVES, keep=("dropped labels", "importance bound", "pure noise v")),
)
def test_a_short_run_works_with_every_objective(make_config, tmp_path, name):
    """Losses stay finite, and images are drawn at the end."""
    settings = {
        "diffusion": OBJECTIVES[name],
        "model": {"num_classes": 11 if "labels" in name else None},  # the data has ten
        "sample": {"sampler": "ddpm" if "noise" in name else "ddim", "num_steps": 8},
    }
    run = loop.train(make_config(tmp_path / "run", **settings))
    assert run.final_grid.exists()
    state = load_newest_state(run.folder)
    assert all(np.all(np.isfinite(array)) for array in state.values())
