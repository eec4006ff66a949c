"""A run knows what it is: its configuration, its number of steps, its folder."""

import shutil
from dataclasses import replace

import pytest

from jax_ddpm import runs
from jax_ddpm.errors import UserError
from jax_ddpm.jobs import train as loop
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.parameters import load_state
from tests.shared.compared_runs import list_saved_steps, load_newest_state, raise_at_batch


def edit(path):
    path.write_text(path.read_text().replace("0.01", "0.11"))


DAMAGE = {
    "deleted": (lambda path: path.unlink(), "config.json is missing"),
    "empty": (lambda path: path.write_text(""), "is not the configuration of a run"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:500]), "is not the configuration of"),
    "edited": (edit, "does not match its seal, so it was damaged or edited by hand"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_configuration_is_restored_from_the_newest_checkpoint(trained_run, tmp_path, capsys, how):
    folder, (damage, message) = shutil.copytree(trained_run, tmp_path / "run"), DAMAGE[how]
    whole, path = runs.load(folder), folder / "config.json"
    damage(path)
    found = path.read_bytes() if path.exists() else None
    assert runs.load(folder) == whole
    said = capsys.readouterr().err
    assert message in said
    assert "The configuration in the checkpoint of step 12 is used instead." in said
    runs.open_for_training(replace(whole.config, run=folder), whole.image_shape)
    assert not runs.load(folder).restored
    kept = folder / "config.json.damaged"
    assert (kept.read_bytes() if kept.exists() else None) == found


def test_the_configuration_of_another_run_is_refused(trained_run, tmp_path):
    folder = shutil.copytree(trained_run, tmp_path / "run")
    run = runs.load(folder)
    diffusion = replace(run.config.diffusion, prediction_type="v")
    runs.write_config(replace(run, config=replace(run.config, diffusion=diffusion)))
    swapped = runs.load(folder)
    with pytest.raises(UserError, match=r"step 12 was trained with another diffusion than .*json"):
        load_state(swapped, build(swapped.config, swapped.image_shape))


def test_a_finished_run_names_only_pictures_that_are_there(trained_run, tmp_path, make_config):
    folder = shutil.copytree(trained_run, tmp_path / "run")
    run = runs.load(folder)
    assert loop.has_pictures(run)
    run.final_grid.write_bytes(b"")
    assert not loop.has_pictures(run)


@pytest.mark.slow
def test_a_longer_run_equals_one_that_was_as_long_from_the_start(make_config, tmp_path, capsys):
    train = {"decay": "constant"}
    config = make_config(tmp_path / "grown", train=train)
    loop.train(config)
    longer = replace(config, train=replace(config.train, num_steps=15, sample_every=3))
    loop.train(longer)
    said = capsys.readouterr().out
    changed = "--train.num-steps 15 (was 12), --train.sample-every 3 (was 6)"
    assert f"Changed from here on: {changed}" in said
    assert "Continuing after step 12 of 15" in said
    loop.train(whole := make_config(tmp_path / "whole", train=train | {"num_steps": 15}))
    found, expected = load_newest_state(config.run), load_newest_state(whole.run)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
    rows = [(run / "metrics.jsonl").read_bytes() for run in (config.run, whole.run)]
    assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.parametrize("how", [shutil.move, lambda folder, _: shutil.rmtree(folder)])
def test_a_run_whose_folder_is_moved_ends_and_makes_no_other(
    make_config, tmp_path, monkeypatch, how
):
    config = make_config(tmp_path / "run")
    with monkeypatch.context() as patch:
        raise_at_batch(patch, 7, lambda: how(tmp_path / "run", tmp_path / "moved"))
        with pytest.raises(UserError, match="was moved, removed or replaced while training"):
            loop.train(config)
    assert not config.run.exists()
    if how is shutil.move:
        assert list_saved_steps(tmp_path / "moved") == [6]
        loop.train(make_config(tmp_path / "moved"))


@pytest.mark.slow
def test_other_images_at_the_same_path_are_refused(trained_run, make_config, tmp_path, tiny_folder):
    folder = shutil.copytree(trained_run, tmp_path / "run")
    images = shutil.copytree(tiny_folder, tmp_path / "images")
    config = make_config(folder, data={"path": images}, train={"decay": "cosine"})
    (folder / "samples.png").unlink()
    loop.train(config)  # the same images elsewhere
    name = "train-labels-idx1-ubyte.gz"
    shutil.copy(images / "train-images-idx3-ubyte.gz", images / "kept.gz")
    from jax_ddpm.data.idx import read_idx, write_idx

    write_idx(images / name, 9 - read_idx(images / name))
    (folder / "samples.png").unlink()
    with pytest.raises(UserError, match=r"no longer those .* was begun with .other labels"):
        loop.train(config)
