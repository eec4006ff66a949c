import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import jax_ddpm

ROOT = Path(jax_ddpm.__file__).parents[1]

# tests/cli covers mistakes in reading the command line; these reach the exit of each command.
MISTAKES = {
    "no such choice": ("train.py --preset nothing", "--preset is 'nothing'"),
    "missing data": (
        "train.py --run {tmp}/a --data.name fashion_mnist --data.path {tmp}/none",
        "there is no folder {tmp}/none",
    ),
    "steps > T": ("sample.py {run} --steps 9", "--steps 9: the number of sampling steps"),
    "no such respacing": ("evaluate.py {run} --likelihood --respacing 9", "--respacing 9"),
    "a device": ("plot.py schedules --out {tmp}/pipe.png", "not a file but a device or pipe"),
    "no command": ("-m jax_ddpm trian", "did you mean train?"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory, trained_run):
    """Make every mistake once, two at a time, because imports take a process seconds."""
    tmp = tmp_path_factory.mktemp("mistakes")
    os.mkfifo(tmp / "pipe.png")
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


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_sentence_and_no_traceback(results, name):
    done, message = results[name]
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.slow
@pytest.mark.guard
def test_a_mistake_leaves_nothing_behind(results):
    assert [path.name for path in results["left behind"]] == ["pipe.png"]


HEAVY = ["torch", "orbax", "matplotlib", "grain", "tensorflow", "diffusers", "tensorboardX"]
LOADED = """
import sys
from jax_ddpm.cli import main
for args in {commands}:
    try:
        main(*args)
    except SystemExit as end:
        assert not end.code, end.code
print("LOADED", *sorted(set({names}) & sys.modules.keys()))
"""


def find_loaded(commands, names):
    """Find which of the modules `names` are loaded once all `commands` have run in one process."""
    program = LOADED.format(commands=commands, names=names)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


def test_help_loads_nothing_heavy():
    names = ("train", "sample", "evaluate", "convert", "plot", "prepare")
    assert find_loaded([[name, "--help"] for name in names], HEAVY) == []


def test_the_list_of_commands_loads_nothing_at_all():
    assert find_loaded([["--help"]], [*HEAVY, "jax", "numpy", "tyro"]) == []


@pytest.mark.slow
@pytest.mark.guard
def test_commands_on_a_run_load_no_other_framework(trained_run, tmp_path):
    run, out = str(trained_run), str(tmp_path / "out")
    commands = [
        ["sample", run, "--num", "1", "--out", f"{out}.png"],
        ["evaluate", run, "--likelihood", "--num", "1", "--out", f"{out}.json"],
        ["convert", run, "--to", "torch", "--out", f"{out}.safetensors"],
        ["plot", "schedules", "--out", f"{out}.png"],
    ]
    assert find_loaded(commands, ["torch", "tensorflow", "diffusers", "tensorboardX"]) == []
