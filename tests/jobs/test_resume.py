"""A resumed run equals an uninterrupted one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import jax_ddpm
from jax_ddpm.config.jobs import SampleJob, Weights
from jax_ddpm.errors import Stopped, UserError
from jax_ddpm.jobs import train as loop
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.parameters import load_state
from jax_ddpm.jobs.sample import sample_run
from jax_ddpm.runs import metrics
from jax_ddpm.runs.averages import select_params
from jax_ddpm.runs.checkpoint import find_latest_step, open_checkpoints
from jax_ddpm.runs.folder import load
from tests.shared.compared_runs import (
    assert_same_run,
    list_saved_steps,
    load_newest_state,
    raise_at_batch,
    train_until_ctrl_c,
)
from tests.shared.disk import limit_file_size
from tests.shared.long_tests import mark_others_long
from tests.shared.processes import make_flags
from tests.shared.quick_compilation import LEVEL


@pytest.mark.slow
@pytest.mark.guard
def test_a_resumed_run_equals_an_uninterrupted_one(
    trained_run, make_config, tmp_path, monkeypatch, capsys
):
    config = make_config(tmp_path / "stopped")
    stopped = train_until_ctrl_c(monkeypatch, config, 7)
    assert stopped.signum == signal.SIGINT
    assert re.search(r"after step 8.*run the same command again", str(stopped))
    assert str(config.run) in str(stopped)
    assert list_saved_steps(config.run) == [6, 8]
    assert not (config.run / "loss.png").exists()
    capsys.readouterr()

    loop.train(config)
    assert "Continuing after step 8 of 12" in capsys.readouterr().out
    assert_same_run(config.run, trained_run)


@pytest.mark.slow
def test_a_run_in_slices_equals_an_uninterrupted_one(trained_run, make_config, tmp_path, capsys):
    config = make_config(tmp_path / "sliced", train={"max_steps": 5})
    for step in (5, 10):
        with pytest.raises(Stopped, match=f"saved after step {step} in .*to continue") as caught:
            loop.train(config)
        assert caught.value.signum is None
        assert list_saved_steps(config.run)[-1] == step
    loop.train(config)
    assert_same_run(config.run, trained_run)


@pytest.mark.slow
def test_a_run_that_died_between_checkpoints_equals_an_uninterrupted_one(
    trained_run, make_config, tmp_path, monkeypatch
):
    class Died(Exception):
        pass

    def die():
        raise Died

    config = make_config(tmp_path / "died")
    with monkeypatch.context() as patch:
        raise_at_batch(patch, 10, die)
        with pytest.raises(Died):
            loop.train(config)
    assert list_saved_steps(config.run) == [6]
    assert [row.step for row in metrics.read(config.run / "metrics.jsonl")] == [3, 6, 9]
    with (config.run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')  # as an interrupted write leaves it
    loop.train(config)
    assert_same_run(config.run, trained_run)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(
    trained_run, make_config, tmp_path, capsys
):
    folder = tmp_path / "copy"
    shutil.copytree(trained_run, folder)
    (folder / "checkpoints" / "12" / "state" / "manifest.ocdbt").write_bytes(b"")
    run = load(folder)
    assert int(load_state(run, build(run.config, run.image_shape)).step) == 6
    assert "12 is damaged (" in capsys.readouterr().err
    loop.train(make_config(folder))
    out, error = capsys.readouterr()
    assert "12 is damaged (" in error
    assert "The checkpoint of step 6 is intact and is used instead." in error
    assert "Continuing after step 6 of 12" in out
    assert list_saved_steps(folder) == [6, 12]
    assert_same_run(folder, trained_run)


@pytest.mark.guard
@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_one_sentence_and_loses_nothing(
    trained_run, make_config, tmp_path
):
    """Wherever the disk fills up: each file of the run is too large for at least one limit."""
    config = make_config(tmp_path / "full")
    sizes = (0, 100, 1000, 3000, 10_000)
    causes = set()
    for size in sizes:
        with limit_file_size(size), pytest.raises(UserError) as caught:
            loop.train(config)
        causes.add(str(caught.value).split(" could not be written")[0])
        assert "(File too large)" in str(caught.value)
    assert len(causes) > 2, causes
    loop.train(config)
    assert_same_run(config.run, trained_run)


AVERAGES = {
    "parallel": "pmap",
    "batch_size": 16,
    "accumulate": 2,
    "ema_form": "power",
    "ema_decays": (0.5, 0.7),
    "posthoc_ema": (0.05, 0.1),
    "snapshot_every": 3,
}


@pytest.fixture(scope="module")
def averaged_run(make_config, tmp_path_factory):
    """A run on eight devices with several averages and snapshots."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    loop.train(make_config(folder, train=AVERAGES))
    return folder


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_an_interrupted_run_has_the_same_averages_and_snapshots(
    averaged_run, make_config, tmp_path, monkeypatch
):
    def die():
        raise InterruptedError

    config = make_config(tmp_path / "broken", train=AVERAGES)
    with monkeypatch.context() as patch:
        raise_at_batch(patch, 10, die)
        with pytest.raises(InterruptedError):
            loop.train(config)
    assert list_saved_steps(config.run) == [6]
    early = read_files(load(config.run).snapshots)
    assert len(early) == 6  # two for each of steps 3, 6 and 9; the two for 9 are written again
    for path in load(config.run).snapshots.glob("*_step_0000009.*"):
        path.write_bytes(b"")
    loop.train(config)

    found, expected = load_newest_state(config.run), load_newest_state(averaged_run)
    assert found.keys() == expected.keys()
    assert {name.split("[")[0] for name in found} >= {".more_ema", ".posthoc_ema", ".ema_params"}
    assert [n for n in found if found[n].tobytes() != expected[n].tobytes()] == []
    found, expected = (read_files(load(f).snapshots) for f in (config.run, averaged_run))
    assert found == expected
    assert len(expected) == 8
    assert early.items() <= expected.items()


@pytest.mark.slow
def test_images_are_drawn_with_any_average_of_a_run(averaged_run, tmp_path, capsys):
    run = load(averaged_run)
    state = load_state(run, build(run.config, run.image_shape))

    def kernel(*flags):
        return np.asarray(select_params(run, state, *flags)[0]["conv_in"]["kernel"])

    found = [kernel(name) for name in ("raw", "ema", "0.5", "0.7")]
    found += [kernel("ema", width) for width in (0.05, 0.08, 0.2)] + [kernel("ema", 0.08, 6)]
    assert len({array.tobytes() for array in found}) == 8
    np.testing.assert_array_equal(kernel("0.9"), kernel("ema"))
    stored = load_file(averaged_run / "ema" / "sigma_rel_0.05_step_0000012.safetensors")
    newest = state.posthoc_ema[0]["conv_in"]["kernel"]
    np.testing.assert_array_equal(stored["conv_in/kernel"], newest)
    np.testing.assert_allclose(kernel("ema", 0.05), newest, rtol=1e-6)  # measured: 0

    job, weights = SampleJob(num=1, out=tmp_path / "image.png"), Weights(posthoc_ema=0.2)
    sample_run(averaged_run, job, weights=weights)
    printed = capsys.readouterr().out
    assert (
        "average of relative width 0.2 at step 12 (from 8 snapshots, relative error of its"
        in printed
    )


@pytest.mark.slow
def test_importance_sampling_on_eight_devices_resumes_exactly(make_config, tmp_path, monkeypatch):
    """From step 10 on, all eight timesteps have ten losses: before and after the interruption."""
    settings = {
        "diffusion": {"timestep_sampling": "importance"},
        "train": {"parallel": "pmap", "num_steps": 30, "batch_size": 16, "checkpoint_every": 15},
    }
    whole, broken = (make_config(tmp_path / name, **settings) for name in ("whole", "broken"))
    loop.train(whole)
    train_until_ctrl_c(monkeypatch, broken, 19)
    history = load_newest_state(broken.run)[".loss_history.counts"]
    assert history.tolist() == [10] * 8
    loop.train(broken)
    assert_same_run(broken.run, whole.run)


COMBINED = {
    "pmap": {
        "train": {"parallel": "pmap", "batch_size": 16, "steps_per_call": 3, "ema_form": "power"},
        "diffusion": {"timestep_sampling": "importance"},
    },
    "mesh": {
        "train": {
            "parallel": "mesh",
            "fsdp": 2,
            "batch_size": 16,
            "accumulate": 2,
            "steps_per_call": 3,
            "data_on_device": "never",
        },
        "diffusion": {"timestep_sampling": "importance"},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mark_others_long(COMBINED, keep=("mesh",)))
def test_a_run_in_slices_is_exact_in_every_parallel_mode(make_config, tmp_path, name):
    """A slice of five steps ends within a call, within a row of the log, between checkpoints."""
    whole = make_config(tmp_path / "whole", **COMBINED[name])
    loop.train(whole)
    train = COMBINED[name]["train"] | {"max_steps": 5}
    sliced = make_config(tmp_path / "sliced", **COMBINED[name] | {"train": train})
    for step in (5, 10):
        with pytest.raises(Stopped, match=f"after step {step} "):
            loop.train(sliced)
    loop.train(sliced)
    assert_same_run(sliced.run, whole.run)


COMMAND = """
from jax_ddpm.cli import main
main("train")
"""


def start(config, cache):
    """Start the training command in a process of its own, on one device and in float32."""
    environment = os.environ | {
        "XLA_FLAGS": f"{LEVEL}=1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(Path(jax_ddpm.__file__).parents[1]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *make_flags(config)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process, folder, step):
    """Wait until `step` is logged and a checkpoint is complete, which lags behind the steps."""
    deadline = time.monotonic() + 120
    with open_checkpoints(folder / "checkpoints") as checkpoints:
        while time.monotonic() < deadline and process.poll() is None:
            rows = metrics.read(folder / "metrics.jsonl")
            if rows and rows[-1].step >= step and find_latest_step(checkpoints) is not None:
                return
            time.sleep(0.01)
    process.kill()
    raise AssertionError(f"step {step} was not reached: {process.communicate()}")


@pytest.mark.guard
@pytest.mark.slow
def test_a_killed_and_stopped_process_resumes_exactly(make_config, tmp_path, compile_once):
    train = {"num_steps": 900, "checkpoint_every": 90, "sample_every": 900, "log_every": 9}
    whole, broken = (make_config(tmp_path / name, train=train) for name in ("whole", "broken"))
    output = start(whole, compile_once).communicate()
    assert "Finished" in output[0], output

    last = 0
    stops = ((signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0))
    for number, code in ((signal.SIGKILL, -9), *stops):
        process = start(broken, compile_once)
        wait_for_step(process, broken.run, last + 100)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
        assert "Traceback" not in error
        assert process.returncode == code
        assert ("run the same command again" in out) == (number != signal.SIGKILL)
        assert ("Continuing after step" in out) == (number != signal.SIGKILL)
        reached = metrics.read(broken.run / "metrics.jsonl")[-1].step
        assert last + 100 <= reached < 900
        last = reached

    output = start(broken, compile_once).communicate()
    assert "Continuing after step" in output[0], output
    assert_same_run(broken.run, whole.run)
