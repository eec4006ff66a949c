import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import jax_ddpm

ROOT = Path(jax_ddpm.__file__).parents[1]

MISTAKES = {
    "unknown preset": ("train.py --preset nothing", "--preset is 'nothing'"),
    "unknown flag": ("train.py --train.batchsize 4", "did you mean --train.batch-size?"),
    "no choice": ("sample.py {run} --sampler dimm", "did you mean 'ddim'?"),
    "no value": ("train.py --seed", "--seed needs a value: a whole number"),
    "wrong type": ("train.py --steps many", "--steps is 'many', but it must be a whole number"),
    "no run named": ("sample.py", "RUN is missing: folder of the run"),
    "no command": ("-m jax_ddpm trian", "did you mean train?"),
    "missing data": (
        "train.py --run {tmp}/a --data.name fashion_mnist --data.path {tmp}/none",
        "there is no folder {tmp}/none",
    ),
    "T = 0": ("train.py --run {tmp}/a --diffusion.num-timesteps 0", "at least 1, got 0"),
    "steps > T": ("sample.py {run} --steps 9", "between 1 and T = 8, got 9"),
    "batch 0": ("train.py --run {tmp}/a --train.batch-size 0", "--train.batch-size is 0"),
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
        program = [script] if script == "-m" else [str(ROOT / "scripts" / script)]
        command = [sys.executable, *program, *args]
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


HEAVY = ("torch", "orbax", "matplotlib", "grain", "tensorflow", "diffusers")
LOADED = """
import sys
from jax_ddpm.cli import main
sys.argv[1:] = {args!r}
try:
    main()
except SystemExit as end:
    found = [name for name in {names!r} if name in sys.modules]
    print("LOADED", end.code, *found)
"""


def loaded_by(args, names):
    """Which of the modules `names` a command loads, and its exit code."""
    program = LOADED.format(args=args, names=names)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "convert", "plot", "prepare"])
def test_help_loads_nothing_heavy(command):
    assert loaded_by([command, "--help"], HEAVY) == ["0"]


def test_the_list_of_commands_loads_nothing_at_all():
    assert loaded_by(["--help"], (*HEAVY, "jax", "numpy", "tyro")) == ["0"]


@pytest.mark.parametrize("command", ["sample", "evaluate", "convert"])
def test_commands_on_a_run_load_no_torch(command, trained_run, tmp_path):
    out = ["--out", str(tmp_path / f"out{OUT[command]}")]
    args = [command, str(trained_run), *(["--to", "torch"] if command == "convert" else []), *out]
    args += [] if command == "convert" else ["--num", "1"]
    assert loaded_by(args, ("torch", "tensorflow", "diffusers")) == ["0"]


OUT = {"sample": ".png", "evaluate": ".json", "convert": ".safetensors"}
