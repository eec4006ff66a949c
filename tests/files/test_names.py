"""Names from outside: of files, folders and classes, with everything that a terminal may obey."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jax_ddpm.data.sources import open_source
from jax_ddpm.data.summary import describe, summarize
from jax_ddpm.errors import UserError, show_name
from jax_ddpm.interop.facts import show_value
from jax_ddpm.jobs.messages import tell
from jax_ddpm.runs.stored import warn

HOSTILE = ["a\nerror: gone", "\x1b[2J\x07", "\u202egnp", os.fsdecode(b"\xff\xfe"), "x" * 250]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_on_one_printable_line(name, capsys):
    for shown in (show_name(name), show_value(name)):
        assert shown.isprintable()
        assert len(shown) < 1300
    tell(f"one {name}\nline")
    warn(f"one {name}")
    out, err = capsys.readouterr()
    assert "line" in out.splitlines()
    assert out.replace("\n", "").isprintable()
    assert err.strip("\n").isprintable()
    assert show_name("café ☕") == "café ☕"


def make_folder(root):
    """Two classes with hostile names, with a picture each, and a file that is no picture."""
    for name in HOSTILE[:4]:
        (root / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), 200, np.uint8)).save(root / name / "a.png")
        (root / name / f"{name}.png").write_bytes(b"no picture")
        (root / name / f"{name}.\x1b[2J").touch()
    return root


def test_nothing_that_a_folder_holds_reaches_the_terminal_raw(tmp_path):
    root, told = make_folder(tmp_path / "data"), []
    source = open_source("folder", root, skip_bad=True, tell=told.append)
    assert sorted(source.class_names) == sorted(HOSTILE[:4])
    told += [f"{name}: {text}" for name, text in describe(summarize(source))]
    assert len(told) >= 4
    for line in told:
        assert line.isprintable(), line
        line.encode()
    with pytest.raises(UserError) as caught:
        open_source("folder", root)
    assert str(caught.value).isprintable()


TRAIN = """
--data.name folder --data.skip-bad --data.image-size 8 --model.channels 4 --model.channel-mult 1 1 1
--model.num-res-blocks 1 --model.num-groups 2 --train.num-steps 2 --train.batch-size 2 --train.parallel jit
--diffusion.num-timesteps 4 --sample.num-steps 2 --compile-cache off
"""


@pytest.mark.slow
def test_commands_print_no_name_raw(tmp_path):
    """Trains two steps on folders of hostile names. Runs with such names are refused."""
    data = make_folder(tmp_path / "data")
    commands = [(0, ["train", "--data.path", data, "--run", tmp_path / "run", *TRAIN.split()])]
    for name in ("\x1b[2J\n", os.fsdecode(b"run\xff")):
        commands.append(
            (1, ["train", "--data.path", data, "--run", tmp_path / name, *TRAIN.split()])
        )
        commands.append((1, ["sample", tmp_path / name, "--num", "1"]))
    for code, command in commands:
        words = [sys.executable, "-m", "jax_ddpm", *map(str, command)]
        done = subprocess.run(words, capture_output=True, cwd=tmp_path)
        shown = (done.stdout + done.stderr).decode()
        assert done.returncode == code, shown
        assert b"\x1b[2J" not in done.stdout + done.stderr
        assert "Traceback" not in shown
        assert code == 0 or shown.startswith("error: ")
