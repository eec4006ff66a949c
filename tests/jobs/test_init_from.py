"""A run that begins with the parameters of another run or of a weight file."""

import shutil
from dataclasses import replace
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


def begin(run, path, weights="average", **model):
    config = replace(run.config, model=replace(run.config.model, **model))
    init = build(config, run.image_shape).network.init
    given = begin_with_given(init, TrainConfig(init_from=path, init_weights=weights))
    key = jax.random.key(3)
    return name_leaves(given(key)), name_leaves(init(key))


@pytest.mark.parametrize(("weights", "field"), [("average", "ema_params"), ("raw", "params")])
def test_a_run_begins_with_averaged_or_raw_parameters(trained_run, capsys, weights, field):
    run = runs.load(trained_run)
    found, _ = begin(run, trained_run, weights)
    state = load_state(run, build(run.config, run.image_shape))
    for name, leaf in name_leaves(getattr(state, field)).items():
        np.testing.assert_array_equal(found[name], leaf)
    kind = "averaged" if weights == "average" else "raw"
    count = len(found)
    expected = f"the {kind} parameters of {trained_run}, step 12: {count} of {count} arrays fit.\n"
    assert capsys.readouterr().out == f"Beginning with {expected}"


def test_what_does_not_fit_is_drawn_and_named(trained_run, capsys):
    run = runs.load(trained_run)
    found, drawn = begin(run, trained_run, num_classes=3)
    new = [name for name in found if name not in read_given(trained_run, "raw").arrays]
    assert new
    for name in new:
        np.testing.assert_array_equal(found[name], drawn[name])
    said = capsys.readouterr().out
    assert "Drawn at random: " in said
    assert new[0] in said


def test_parameters_of_another_network_are_refused(trained_run):
    train = TrainConfig(init_from=trained_run)
    with pytest.raises(UserError, match=r"none of the averaged parameters of .* fits this network"):
        begin_with_given(lambda key: {"mine": jnp.zeros(3)}, train)
    with pytest.raises(UserError, match=r"there is no file .*nowhere"):
        begin_with_given(lambda key: {}, TrainConfig(init_from=Path("nowhere")))


def test_a_weight_file_is_read(trained_run, tmp_path):
    out = export_weights(trained_run, tmp_path / "torch_ref.safetensors").file
    run = runs.load(trained_run)
    found, _ = begin(run, out)
    given = read_given(trained_run, "average").arrays
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, given[name])


@pytest.mark.slow
@pytest.mark.guard
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
