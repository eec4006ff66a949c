import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import jax_ddpm

ROOT = Path(jax_ddpm.__file__).parents[1]

MISTAKES = {
    "unknown preset": ("train.py --preset nothing", "no preset 'nothing'"),
    "unknown flag": ("train.py --train.batchsize 4", "did you mean --train.batch-size?"),
    "missing data": (
        "train.py --run {tmp}/a --data.name fashion_mnist --data.path {tmp}/none",
        "there is no folder {tmp}/none",
    ),
    "T = 0": ("train.py --run {tmp}/a --diffusion.num-timesteps 0", "at least 1, got 0"),
    "steps > T": ("sample.py {run} --steps 9", "between 1 and T = 8, got 9"),
    "batch 0": ("train.py --run {tmp}/a --train.batch-size 0", "--train.batch-size is 0"),
    "no evaluation": ("evaluate.py {run}", "say what to evaluate: --likelihood"),
    "no such respacing": ("evaluate.py {run} --likelihood --respacing 9", "--respacing 9"),
    "no run": ("sample.py {tmp}", "is not a run folder"),
    "not a number": ("train.py --run {tmp}/a --train.learning-rate nan", "a finite number"),
    "a device": ("plot.py schedules --out {tmp}/pipe", "not a file but a device or pipe"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory, trained_run):
    """Every mistake made once, two at a time, for a process spends seconds on its imports."""
    tmp = tmp_path_factory.mktemp("mistakes")
    os.mkfifo(tmp / "pipe")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def run(item):
        name, (line, message) = item
        script, *args = line.format(tmp=tmp, run=trained_run).split()
        command = [sys.executable, str(ROOT / "scripts" / script), *args]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp)
        return name, (done, message.format(tmp=tmp))

    with ThreadPoolExecutor(2) as pool:
        found = dict(pool.map(run, MISTAKES.items()))
    return found | {"left behind": list(tmp.iterdir())}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_no_traceback(results, name):
    done, message = results[name]
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_mistake_leaves_nothing_behind(results):
    assert [path.name for path in results["left behind"]] == ["pipe"]
