"""Read the files of a run, and compare two runs."""

import signal

import jax
import numpy as np
import pytest

from jax_ddpm.errors import Stopped
from jax_ddpm.jobs import train as loop
from jax_ddpm.jobs.build import build
from jax_ddpm.runs import checkpoint
from jax_ddpm.runs.folder import load

STATE = {"step", "params", "ema_params", "opt_state", "skipped"}


def load_newest_state(folder):
    """Load every array of a run's newest checkpoint, by name."""
    run = load(folder)
    like = jax.eval_shape(build(run.config, run.image_shape).init_state, jax.random.key(0))
    with checkpoint.open_checkpoints(run.checkpoints) as checkpoints:
        state = checkpoint.restore(checkpoints, like)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def list_saved_steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.is_dir())


def assert_same_run(folder, expected):
    found, state = load_newest_state(folder), load_newest_state(expected)
    assert found.keys() == state.keys()
    parts = {name.removeprefix(".").split("[")[0].split(".")[0] for name in state}
    assert parts >= STATE
    for name, array in state.items():
        assert found[name].tobytes() == array.tobytes(), name
    assert (folder / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    for name in ("samples.png", "sampling.gif", "loss.png"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def raise_at_batch(monkeypatch, number, action):
    """Call `action` when the loop asks for batch `number`; 0 is the first of a call of train."""
    make_feed = loop.make_feed

    def watched(*args, **kwargs):
        for i, batch in enumerate(make_feed(*args, **kwargs)):
            if i == number:
                action()
            yield batch

    monkeypatch.setattr(loop, "make_feed", watched)


def train_until_ctrl_c(monkeypatch, config, number):
    """Train, and press Ctrl-C when the loop asks for batch `number`; return what stopped it."""
    with monkeypatch.context() as patch, pytest.raises(Stopped) as caught:
        raise_at_batch(patch, number, lambda: signal.raise_signal(signal.SIGINT))
        loop.train(config)
    return caught.value
