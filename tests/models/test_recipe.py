"""As the README says, an architecture is a file and a line, and so is a source of weights."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import jax_ddpm
from jax_ddpm.interop import PEERS, from_torch, to_torch
from jax_ddpm.jobs.train import train
from jax_ddpm.models import ARCHITECTURES
from tests.shared.recipe import architecture, peer
from tests.shared.recipe.architecture import TinyConfig
from tests.shared.recipe.peer import TINY_TORCH

PACKAGE = Path(jax_ddpm.__file__).parent


def draw_torch_weights(width=5, channels=1):
    numbers = np.random.default_rng(0)
    shapes = {
        "first.weight": (width, channels, 3, 3),
        "first.bias": (width,),
        "time_mlp.1.weight": (width, 8),
        "time_mlp.1.bias": (width,),
        "last.weight": (channels, width, 3, 3),
        "last.bias": (channels,),
    }
    return {name: numbers.normal(size=s).astype(np.float32) for name, s in shapes.items()}


@pytest.mark.slow
def test_a_new_architecture_is_trained(make_config, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "tiny", TinyConfig)
    config = replace(make_config(tmp_path / "run", train={"max_steps": 3}), model=TinyConfig(4))
    with pytest.raises(jax_ddpm.errors.Stopped, match="3"):
        train(config)
    stored = json.loads((tmp_path / "run/config.json").read_text())["config"]["model"]
    assert (stored["architecture"], stored["width"]) == ("tiny", 4)


def test_weights_of_a_new_peer_go_both_ways(monkeypatch):
    monkeypatch.setitem(PEERS, "tiny_torch", TINY_TORCH)
    weights = draw_torch_weights()
    network = from_torch(weights, "tiny_torch")
    assert network.config == TinyConfig(width=5, channels=1)
    x_t, t = np.ones((2, 4, 4, 1), np.float32), np.array([3, 7])
    assert network.apply(network.params, x_t, t).shape == x_t.shape
    back = to_torch(network)
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[name], array) for name, array in weights.items())


def register(path, after, line, imported):
    """Add a line to a registry, and the import that it needs."""
    text = path.read_text()
    assert text.count(after) == 1
    text = text.replace(after, f"{after}{line}\n")
    path.write_text(text.replace("from jax_ddpm", f"{imported}\nfrom jax_ddpm", 1))


@pytest.mark.slow
def test_the_command_line_knows_both(tmp_path):
    """Follow the recipe to the letter, in a copy of the package."""
    copy = tmp_path / "jax_ddpm"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(architecture.__file__, copy / "models/tiny.py")
    text = Path(peer.__file__).read_text().replace(architecture.__name__, "jax_ddpm.models.tiny")
    (copy / "interop/tiny_torch.py").write_text(text)
    register(
        copy / "models/__init__.py",
        "ARCHITECTURES: dict[str, type[Architecture]] = {\n",
        '    "tiny": TinyConfig,',
        "from jax_ddpm.models.tiny import TinyConfig",
    )
    register(
        copy / "interop/network.py",
        "PEERS: dict[str, Peer] = {\n",
        '    "tiny_torch": TINY_TORCH,',
        "from jax_ddpm.interop.tiny_torch import TINY_TORCH",
    )
    np.savez(tmp_path / "weights.npz", **draw_torch_weights())

    def command(*args):
        run = subprocess.run(
            [sys.executable, "-m", "jax_ddpm", *map(str, args)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    command(
        "convert",
        "weights.npz",
        "--source",
        "tiny_torch",
        "--out",
        "run",
        "--data.image-size",
        8,
        "--num-timesteps",
        8,
        "--sample.num-steps",
        4,
    )
    command("sample", "run", "--num", 2, "--out", "two.npz")
    assert np.load(tmp_path / "two.npz")["arr_0"].shape == (2, 8, 8, 1)
    command("convert", "run", "--to", "torch", "--out", "back.npz")
    back = np.load(tmp_path / "back.npz")
    assert all(np.array_equal(back[name], array) for name, array in draw_torch_weights().items())
