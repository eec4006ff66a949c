"""Several real processes on this machine train, draw, evaluate, stop and fail as one."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
from processes import ends, flags_of, start, together

from jax_ddpm.errors import UserError
from jax_ddpm.training import metrics
from jax_ddpm.training.distributed import Agreement, Launch, require_complete


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (Launch(coordinator="a:1"), "--coordinator is given without --distributed"),
        (Launch(True, process_id=1), "--process-id without --coordinator and --num-processes"),
        (Launch(True, "a", 2, 0), "must be HOST:PORT"),
        (Launch(True, "a:0", 2, 0), "must be HOST:PORT"),
        (Launch(True, "a:99", 2, 2), "between 0 and N - 1"),
    ],
)
def test_flags_that_do_not_say_where_a_process_stands_are_refused(launch, message):
    with pytest.raises(UserError, match=message):
        require_complete(launch)


@pytest.mark.parametrize("launch", [Launch(), Launch(True), Launch(True, "node0:9876", 2, 1)])
def test_whole_flags_are_accepted(launch):
    require_complete(launch)


def test_one_process_agrees_with_itself_at_once():
    agree = Agreement()
    assert [agree(value) for value in (0, 15, 0)] == [0, 15, 0]


def losses(folder):
    return np.array([row.loss for row in metrics.read(folder / "metrics.jsonl")])


@pytest.fixture(scope="module")
def runs(make_config, tmp_path_factory, compile_once):
    """One run by one device; by two processes with two devices each; and continued by four."""
    folder = tmp_path_factory.mktemp("processes")
    model = {"channels": 12, "dropout": 0.1}  # kernels of 3 x 3 x 12 x 12 are split

    def job(kind, name, **train):
        if kind == "train":
            return ["train", *flags_of(make_config(folder / name, model=model, train=train))]
        out = str(folder / f"{name}.{'npz' if kind == 'sample' else 'json'}")
        more = ["--likelihood"] if kind == "evaluate" else []
        return [kind, str(folder / name), "--num", "6", "--out", out, *more]

    both = [job("train", "mesh", parallel="mesh", fsdp=2), job("train", "pmap", parallel="pmap"),
            job("train", "half", parallel="mesh", fsdp=4, max_steps=6)]  # fmt: skip
    drawn = [job(kind, "mesh") for kind in ("sample", "evaluate")]
    together([*both, *drawn], 2, compile_once, devices=2)
    shutil.copytree(folder / "half", folder / "quarters")
    alone = [job(kind, "one", parallel="jit") for kind in ("train", "sample", "evaluate")]
    rest = job("train", "half", parallel="jit")
    together([*alone, rest], 1, compile_once)
    together([job("train", "quarters", parallel="pmap")], 4, compile_once)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pmap", "mesh", "half", "quarters"])
def test_processes_give_the_losses_of_one_device(runs, name):
    found, expected = losses(runs / name), losses(runs / "one")
    assert len(found) == len(expected) == 4
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # measured: 6e-8


@pytest.mark.slow
def test_processes_draw_the_images_and_find_the_likelihoods_of_one_device(runs):
    found, expected = (
        np.load(runs / f"{name}.npz")["arr_0"].astype(int) for name in ("mesh", "one")
    )
    assert found.shape == (6, 8, 8, 1)
    assert np.abs(found - expected).max() <= 1  # measured: 0
    found, expected = (json.loads((runs / f"{name}.json").read_text()) for name in ("mesh", "one"))
    bits = "bits_of_each_image"
    np.testing.assert_allclose(found[bits], expected[bits], rtol=1e-4)
    assert len(found[bits]) == 6


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(make_config, tmp_path, compile_once):
    train = {"num_steps": 100_000, "log_every": 5, "sample_every": 100_000, "parallel": "pmap",
             "checkpoint_every": 100_000}  # fmt: skip
    run = tmp_path / "run"
    job = ["train", *flags_of(make_config(run, train=train))]
    processes = start([job], 2, compile_once)
    deadline = time.monotonic() + 240
    while len(losses(run) if run.exists() else ()) < 2 and time.monotonic() < deadline:
        assert [process.poll() for process in processes] == [None, None]
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    found = ends(processes, 60)
    assert [code for code, _, _ in found] == [0, 0], found
    assert "Stopped and saved after step" in found[0][1]
    assert [path.name.isdigit() for path in (run / "checkpoints").iterdir()] == [True]


@pytest.mark.slow
def test_a_failure_of_one_process_ends_the_other_too(make_config, tmp_path, compile_once):
    """Where the first sample grid belongs there is a folder, so process 0 cannot write it."""
    run = tmp_path / "run"
    train = {"sample_every": 3, "checkpoint_every": 3, "parallel": "pmap"}
    job = ["train", *flags_of(make_config(run, train=train))]
    together([[*job, "--train.max-steps", "2"]], 2, compile_once)
    (run / "samples" / "step_0000003.png" / "full").mkdir(parents=True)
    begin = time.monotonic()
    found = ends(start([job], 2, compile_once), 120)
    assert found[0][0] == 1
    assert found[1][0] != 0
    assert "error: " in found[0][2]
    assert "Traceback" not in found[0][2]
    assert time.monotonic() - begin < 100
