"""A run that begins with the parameters of another run or of a weight file."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm import runs
from jax_ddpm.config.run import TrainConfig
from jax_ddpm.errors import UserError
from jax_ddpm.jobs import train as loop
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.export import export_weights
from jax_ddpm.jobs.init_from import begin_with_given, read_given
from jax_ddpm.jobs.parameters import load_state
from jax_ddpm.runs.stored import name_leaves
from tests.shared.compared_runs import assert_same_run, list_saved_steps, raise_at_batch


def begin(path, like, weights="average"):
    """Begin with what fits in a network whose arrays have the shapes in `like`, and are zero."""
    train = TrainConfig(init_from=path, init_weights=weights)
    init = begin_with_given(lambda key: {n: jnp.zeros(a.shape) for n, a in like.items()}, train)
    return init(jax.random.key(3))


@pytest.mark.parametrize(
    ("weights", "field"),
    [
        ("average", "ema_params"),
        pytest.param("raw", "params", marks=pytest.mark.slow),
    ],
)
def test_a_run_begins_with_averaged_or_raw_parameters(trained_run, capsys, weights, field):
    run = runs.load(trained_run)
    state = load_state(run, build(run.config, run.image_shape))
    expected = name_leaves(getattr(state, field))
    found = begin(trained_run, expected, weights)
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf)
    kind = "averaged" if weights == "average" else "raw"
    count = f"{len(found)} of {len(found)} arrays fit.\n"
    origin = f"the {kind} parameters of {trained_run}, step 12"
    assert capsys.readouterr().out == f"Beginning with {origin}: {count}"


@pytest.mark.slow
def test_what_does_not_fit_is_drawn_and_named(trained_run, capsys):
    given = read_given(trained_run, "average").arrays
    like = dict(given)
    del like["conv_in/bias"]
    like |= {"conv_in/kernel": np.zeros((3, 3, 3, 4)), "label_embed/embedding": np.zeros((3, 16))}
    found = begin(trained_run, like)
    np.testing.assert_array_equal(found["conv_in/kernel"], 0)
    np.testing.assert_array_equal(found["conv_out/bias"], given["conv_out/bias"])
    said = capsys.readouterr().out
    assert f": {len(like) - 2} of {len(like)} arrays fit. Drawn at random: " in said
    assert "conv_in/kernel (3x3x3x4 here, 3x3x1x4 there), label_embed/embedding (3x16)." in said
    assert "Not used: conv_in/bias (4)." in said


def test_parameters_of_another_network_are_refused(trained_run):
    train = TrainConfig(init_from=trained_run)
    with pytest.raises(UserError, match=r"none of the averaged parameters of .* fits this network"):
        begin_with_given(lambda key: {"mine": jnp.zeros(3)}, train)
    with pytest.raises(UserError, match=r"there is no file .*nowhere"):
        begin_with_given(lambda key: {}, TrainConfig(init_from=Path("nowhere")))


@pytest.mark.slow
def test_a_weight_file_is_read(trained_run, tmp_path):
    out = export_weights(trained_run, tmp_path / "torch_ref.safetensors").file
    given = read_given(trained_run, "average").arrays
    for name, leaf in read_given(out, "average").arrays.items():
        np.testing.assert_array_equal(leaf, given[name])


@pytest.mark.slow
def test_a_run_that_has_begun_no_longer_needs_the_other(
    trained_run, make_config, tmp_path, monkeypatch
):
    class Died(Exception):
        pass

    def die():
        raise Died

    copy = shutil.copytree(trained_run, tmp_path / "copy")
    changes = {"init_from": copy, "decay": "constant"}
    whole = make_config(tmp_path / "whole", train=changes)
    loop.train(whole)
    killed = make_config(tmp_path / "killed", train=changes)
    with monkeypatch.context() as patch:
        raise_at_batch(patch, 3, die)
        with pytest.raises(Died):
            loop.train(killed)
    assert list_saved_steps(killed.run) == [0]
    shutil.rmtree(copy)
    loop.train(killed)
    assert_same_run(killed.run, whole.run)
