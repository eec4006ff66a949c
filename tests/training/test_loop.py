import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import jax_ddpm
from jax_ddpm.averages import chosen_params
from jax_ddpm.build import build
from jax_ddpm.errors import Stopped, UserError
from jax_ddpm.generate import SampleArgs, load_state, sample_run
from jax_ddpm.runs import load
from jax_ddpm.training import checkpoint, loop, metrics

STATE = {"step", "params", "ema_params", "opt_state"}


def newest_state(folder):
    """Every array of the newest checkpoint of a run, by name."""
    run = load(folder)
    like = jax.eval_shape(build(run.config, run.image_shape).init_state, jax.random.key(0))
    with checkpoint.open_checkpoints(run.checkpoints) as checkpoints:
        state = checkpoint.restore(checkpoints, like)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def saved_steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.is_dir())


def assert_same_run(folder, expected):
    found, state = newest_state(folder), newest_state(expected)
    assert found.keys() == state.keys()
    parts = {name.removeprefix(".").split("[")[0].split(".")[0] for name in state}
    assert parts - {"loss_history"} == STATE
    for name, array in state.items():
        assert found[name].tobytes() == array.tobytes(), name
    assert (folder / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    for name in ("samples.png", "sampling.gif", "loss.png"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def raise_at_batch(monkeypatch, number, action):
    """Call `action` when the loop asks for batch `number` (0 is the first of this call of train)."""
    batches = loop.batches

    def watched(*args, **kwargs):
        for i, batch in enumerate(batches(*args, **kwargs)):
            if i == number:
                action()
            yield batch

    monkeypatch.setattr(loop, "batches", watched)


def test_a_finished_run_holds_everything_a_person_looks_for(trained_run):
    names = {path.name for path in trained_run.iterdir()}
    files = {"config.json", "metrics.jsonl", "samples.png", "sampling.gif", "loss.png", "lock"}
    assert names == files | {"tensorboard", "checkpoints", "samples"}
    grids = sorted(path.name for path in (trained_run / "samples").iterdir())
    assert grids == ["step_0000006.png", "step_0000012.png"]
    assert saved_steps(trained_run) == [6, 12]
    with (
        Image.open(trained_run / "samples.png") as grid,
        Image.open(trained_run / "loss.png") as loss,
    ):
        assert (grid.mode, loss.format) == ("L", "PNG")
    with Image.open(trained_run / "sampling.gif") as gif:
        assert gif.n_frames == 5  # noise and four steps


def test_metrics_have_one_row_per_window_and_the_rate_that_was_used(trained_run, make_config):
    rows = metrics.read(trained_run / "metrics.jsonl")
    assert [row.step for row in rows] == [3, 6, 9, 12]
    assert all(0 < row.loss < 10 and 0 < row.grad_norm < 100 for row in rows)
    assert rows[0].learning_rate == pytest.approx(
        1e-2 * 2 / 4
    )  # the third step of four warm-up steps
    assert rows[-1].learning_rate < 1e-3


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


def test_training_changes_the_parameters_and_the_average_follows(trained_run):
    state = newest_state(trained_run)
    raw = {k.removeprefix(".params"): v for k, v in state.items() if k.startswith(".params")}
    ema = {
        k.removeprefix(".ema_params"): v for k, v in state.items() if k.startswith(".ema_params")
    }
    assert raw.keys() == ema.keys()
    assert all(np.all(np.isfinite(value)) for value in state.values())
    assert any(np.abs(raw[name] - ema[name]).max() > 1e-3 for name in raw)


def test_a_run_stopped_half_way_and_continued_is_the_run_that_was_not_stopped(
    trained_run, make_config, tmp_path, monkeypatch, capsys
):
    config = make_config(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        raise_at_batch(patch, 7, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Stopped, match=r"after step 9.*run the same command again") as caught:
            loop.train(config)
    assert caught.value.signum == signal.SIGINT
    assert str(config.run) in str(caught.value)
    assert saved_steps(config.run) == [6, 9]
    assert not (config.run / "loss.png").exists()
    capsys.readouterr()

    loop.train(config)
    assert "Continuing after step 9 of 12" in capsys.readouterr().out
    assert_same_run(config.run, trained_run)


@pytest.mark.slow
def test_a_run_that_died_between_checkpoints_continues_as_if_it_had_not(
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
    assert saved_steps(config.run) == [6]
    assert [row.step for row in metrics.read(config.run / "metrics.jsonl")] == [3, 6, 9]
    with (config.run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')  # what a write that is cut off leaves
    loop.train(config)
    assert_same_run(config.run, trained_run)


def test_a_finished_run_run_again_trains_nothing_and_says_so(
    make_config, trained_run, tmp_path, monkeypatch, capsys
):
    def refuse(*args, **kwargs):
        raise AssertionError("the loop asked for data")

    before = {path: path.stat().st_mtime_ns for path in trained_run.glob("*.[pgj]*")}
    monkeypatch.setattr(loop, "batches", refuse)
    run = loop.train(make_config(trained_run))
    out = capsys.readouterr().out
    assert run.folder == trained_run
    assert f"Finished: {trained_run / 'samples.png'}" in out
    pictures = {path: t for path, t in before.items() if path.suffix in (".png", ".gif")}
    assert all(path.stat().st_mtime_ns == t for path, t in pictures.items())


def test_pictures_of_a_finished_run_are_drawn_again_if_they_are_gone(
    make_config, tmp_path, trained_run
):
    folder = tmp_path / "copy"
    shutil.copytree(trained_run, folder)
    for name in ("loss.png", "samples.png", "sampling.gif"):
        (folder / name).unlink()
    loop.train(make_config(folder))
    assert_same_run(folder, trained_run)


def test_a_batch_larger_than_the_data_set_is_refused_before_anything_is_written(
    make_config, tmp_path
):
    with pytest.raises(UserError, match=r"--train.batch-size 41 .* 40 images"):
        loop.train(make_config(tmp_path / "run", train={"batch_size": 41}))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_eight_devices_train_the_run_of_one(trained_run, make_config, tmp_path):
    folder = tmp_path / "pmap"
    loop.train(make_config(folder, train={"parallel": "pmap"}))
    rows, expected = (metrics.read(f / "metrics.jsonl") for f in (folder, trained_run))
    # Measured: 7e-8 relative, after twelve steps of Adam in float32.
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row, other, rtol=1e-5)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(
    make_config, tmp_path, monkeypatch
):
    config = make_config(tmp_path / "nan")
    compiled = loop.compiled_step
    seen = []

    def with_nan(*args):
        step = compiled(*args)

        def broken(state, pixels, key):
            state, values = step(state, pixels, key)
            seen.append(1)
            return state, values | ({"loss": np.float32("nan")} if len(seen) > 7 else {})

        return broken

    monkeypatch.setattr(loop, "compiled_step", with_nan)
    with pytest.raises(
        UserError, match=r"loss is nan after step 9.* of step 6.*--train.learning-rate"
    ):
        loop.train(config)
    assert saved_steps(config.run) == [6]
    assert [row.step for row in metrics.read(config.run / "metrics.jsonl")] == [3, 6]


AVERAGES = {
    "parallel": "pmap", "batch_size": 16, "accumulate": 2, "ema_form": "power",
    "ema_decays": (0.5, 0.7), "posthoc_ema": (0.05, 0.1), "snapshot_every": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def averaged_run(make_config, tmp_path_factory):
    """A run on eight devices with several averages and snapshots."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    loop.train(make_config(folder, train=AVERAGES))
    return folder


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_averages_and_snapshots_of_an_interrupted_run_are_those_of_one_that_was_not(
    averaged_run, make_config, tmp_path, monkeypatch
):
    def die():
        raise InterruptedError

    config = make_config(tmp_path / "broken", train=AVERAGES)
    with monkeypatch.context() as patch:
        raise_at_batch(patch, 10, die)
        with pytest.raises(InterruptedError):
            loop.train(config)
    assert saved_steps(config.run) == [6]
    early = files_in(load(config.run).snapshots)
    assert len(early) == 6  # two of each of the steps 3, 6 and 9: 9 is written again
    for path in load(config.run).snapshots.glob("*_step_0000009.*"):
        path.write_bytes(b"")
    loop.train(config)

    found, expected = newest_state(config.run), newest_state(averaged_run)
    assert found.keys() == expected.keys()
    assert {name.split("[")[0] for name in found} >= {".more_ema", ".posthoc_ema", ".ema_params"}
    assert [n for n in found if found[n].tobytes() != expected[n].tobytes()] == []
    found, expected = (files_in(load(f).snapshots) for f in (config.run, averaged_run))
    assert found == expected
    assert len(expected) == 8
    assert early.items() <= expected.items()


@pytest.mark.slow
def test_images_are_drawn_with_any_average_of_a_run(averaged_run, tmp_path, capsys):
    run = load(averaged_run)
    state = load_state(run, build(run.config, run.image_shape))

    def kernel(*flags):
        return np.asarray(chosen_params(run, state, *flags)[0]["conv_in"]["kernel"])

    found = [kernel(name) for name in ("raw", "ema", "0.5", "0.7")]
    found += [kernel("ema", width) for width in (0.05, 0.08, 0.2)] + [kernel("ema", 0.08, 6)]
    assert len({array.tobytes() for array in found}) == 8
    np.testing.assert_array_equal(kernel("0.9"), kernel("ema"))
    stored = load_file(averaged_run / "ema" / "sigma_rel_0.05_step_0000012.safetensors")
    newest = state.posthoc_ema[0]["conv_in"]["kernel"]
    np.testing.assert_array_equal(stored["conv_in/kernel"], newest)
    np.testing.assert_allclose(kernel("ema", 0.05), newest, rtol=1e-6)  # measured: 0

    sample_run(SampleArgs(averaged_run, num=1, out=tmp_path / "image.png", posthoc_ema=0.2))
    said = capsys.readouterr().out
    assert "average of relative width 0.2 at step 12 (made of 8 snapshots, its profile" in said


OBJECTIVES = {
    "antithetic p2": {"timestep_sampling": "antithetic", "weighting": "p2"},
    "left-out labels": {
        "label_dropout": 0.3, "timestep_sampling": "log_normal", "weighting": "soft_min_snr",
    },
    "importance bound": {
        "timestep_sampling": "importance", "objective": "vlb", "variance": "learned_range",
    },
    "pure noise x_0": {
        "zero_terminal_snr": True, "prediction_type": "x_0", "weighting": "truncated_snr",
    },
    "pure noise v": {"zero_terminal_snr": True, "prediction_type": "v"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_short_run_of_each_option(make_config, tmp_path, name):
    """The loop stops at a loss that is not finite, and images are drawn at the end."""
    settings = {
        "diffusion": OBJECTIVES[name],
        "model": {"num_classes": 11 if "labels" in name else None},  # the data has ten
        "sample": {"sampler": "ddpm" if "noise" in name else "ddim", "num_steps": 8},
    }
    run = loop.train(make_config(tmp_path / "run", **settings))
    assert run.final_grid.exists()
    state = newest_state(run.folder)
    assert all(np.all(np.isfinite(array)) for array in state.values())


@pytest.mark.slow
def test_importance_sampling_on_eight_devices_is_continued_exactly(
    make_config, tmp_path, monkeypatch
):
    """From step 10 on all eight timesteps have ten losses: before and after the interruption."""
    settings = {
        "diffusion": {"timestep_sampling": "importance"},
        "train": {"parallel": "pmap", "num_steps": 30, "batch_size": 16, "checkpoint_every": 15},
    }
    whole, broken = (make_config(tmp_path / name, **settings) for name in ("whole", "broken"))
    loop.train(whole)
    with monkeypatch.context() as patch:
        raise_at_batch(patch, 19, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Stopped):
            loop.train(broken)
    history = newest_state(broken.run)[".loss_history.counts"]
    assert history.tolist() == [10] * 8
    loop.train(broken)
    assert_same_run(broken.run, whole.run)


COMMAND = """
import sys
from jax_ddpm import cli
from jax_ddpm.training.loop import train
cli.run(lambda: train(cli.parse_config(sys.argv[1:], prog="train.py", description="")))
"""


def flags_of(config):
    """The command line that gives `config`."""
    flags = ["--run", str(config.run), "--data.name", "fashion_mnist"]
    flags += ["--data.path", str(config.data.path), "--data.random-flip"]
    for section in ("model", "diffusion", "train", "sample"):
        for name, value in vars(getattr(config, section)).items():
            flag = f"--{section}.{name.replace('_', '-')}"
            if isinstance(value, bool):
                flags.append(flag if value else flag.replace(".", ".no-", 1))
            elif isinstance(value, tuple):
                flags += [flag, *map(str, value)]
            else:
                flags += [flag, str(value)]
    return flags


def start(config, cache):
    """The training command in a process of its own, on one device and in float32."""
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(Path(jax_ddpm.__file__).parents[1]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *flags_of(config)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_step(process, folder, step):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        rows = metrics.read(folder / "metrics.jsonl")
        if rows and rows[-1].step >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} did not come: {process.communicate()}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_killed_or_stopped_is_continued_exactly(
    make_config, tmp_path, compile_once, number
):
    train = {"num_steps": 900, "checkpoint_every": 90, "sample_every": 900, "log_every": 9}
    whole, broken = (make_config(tmp_path / name, train=train) for name in ("whole", "broken"))
    output = start(whole, compile_once).communicate()
    assert "Finished" in output[0], output

    process = start(broken, compile_once)
    wait_for_step(process, broken.run, 130)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert "Traceback" not in error
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 0}[number]
    assert ("run the same command again" in out) == (number != signal.SIGKILL)
    last = json.loads((broken.run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] < 900

    output = start(broken, compile_once).communicate()
    assert "Continuing after step" in output[0], output
    assert_same_run(broken.run, whole.run)
