"""What may change when a run is continued."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jax_ddpm import runs
from jax_ddpm.config.run import Config, DiffusionConfig, TrainConfig
from jax_ddpm.data import identity
from jax_ddpm.data.base import ImageSource
from jax_ddpm.data.summary import summarize
from jax_ddpm.errors import UserError
from jax_ddpm.runs import checkpoint
from tests.shared.saved_states import ABOUT, make_state

SHAPE = (4, 4, 1)


def change(config, section, **values):
    return replace(config, **{section: replace(getattr(config, section), **values)})


@pytest.fixture
def config(tmp_path):
    config = Config(run=tmp_path / "run", diffusion=DiffusionConfig(num_timesteps=8))
    config = change(config, "sample", num_steps=8)
    runs.open_for_training(config, SHAPE)
    return config


def make_source(count=6, names=("cat", "dog")):
    images = np.random.default_rng(0).integers(0, 256, (count, *SHAPE), np.uint8)
    return ImageSource(images, np.arange(count) % len(names), names)


@pytest.mark.parametrize(
    ("section", "values", "line"),
    [
        ("train", {"sample_every": 100}, "--train.sample-every 100 (was 10000)"),
        ("train", {"log_every": 50}, "--train.log-every 50 (was 100)"),
        ("train", {"keep_every": 20_000}, "--train.keep-every 20000 (was None)"),
        ("train", {"keep_best": True}, "--train.keep-best True (was False)"),
        ("train", {"evaluate_every": 1000}, "--train.evaluate-every 1000 (was None)"),
        ("train", {"num_steps": 900_000}, "--train.num-steps 900000 (was 800000)"),
        ("sample", {"sampler": "ddim"}, "--sample.sampler ddim (was ddpm)"),
    ],
)
def test_what_changes_no_number_may_change_and_is_named(config, section, values, line):
    changed = change(config, section, **values)
    opening = runs.open_for_training(changed, SHAPE)
    assert [str(one) for one in opening.changes] == [line]
    assert runs.load(config.run).config == changed
    assert runs.open_for_training(changed, SHAPE).changes == ()


def test_what_the_best_checkpoint_goes_by_stays(config):
    best = {"keep_best": True, "best_by": "distance", "evaluate_every": 1000}
    with pytest.raises(UserError, match=r"made with --train.best-by None, not distance"):
        runs.open_for_training(change(config, "train", **best), SHAPE)
    config = change(replace(config, run=config.run.with_name("other")), "train", **best)
    runs.open_for_training(config, SHAPE)
    with pytest.raises(UserError, match=r"made with --train.evaluate-images 1000, not 500"):
        runs.open_for_training(change(config, "train", evaluate_images=500), SHAPE)


def test_another_spelling_of_the_data_path_is_no_change(config, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    config = change(replace(config, run=tmp_path / "other"), "data", path=tmp_path / "images")
    runs.open_for_training(config, SHAPE)
    monkeypatch.chdir(tmp_path)
    for path in (Path("images"), tmp_path / "run" / ".." / "images"):
        assert runs.open_for_training(change(config, "data", path=path), SHAPE).changes == ()


def test_the_number_of_steps_grows_only_if_the_learning_rate_does_not_depend_on_it(tmp_path):
    config = Config(run=tmp_path / "run", train=TrainConfig(num_steps=5100, decay="cosine"))
    runs.open_for_training(config, SHAPE)
    message = (
        r"--train.num-steps 5100, not 9000: with --train.decay cosine.*--train.init-from .*/run"
    )
    with pytest.raises(UserError, match=message):
        runs.open_for_training(change(config, "train", num_steps=9000), SHAPE)


def test_a_run_does_not_end_before_its_newest_checkpoint(config):
    with checkpoint.open_checkpoints(config.run / "checkpoints") as checkpoints:
        checkpoint.save(checkpoints, make_state(6000), ABOUT)
    shutil.copytree(config.run / "checkpoints/6000", config.run / "checkpoints/9000")
    assert runs.open_for_training(change(config, "train", num_steps=6000), SHAPE).changes
    with pytest.raises(UserError, match="is already at step 6000"):
        runs.open_for_training(change(config, "train", num_steps=5999), SHAPE)


def test_the_variance_in_a_loss_is_not_only_a_setting_of_the_sampler(tmp_path):
    config = change(Config(run=tmp_path), "diffusion", objective="vlb")
    runs.open_for_training(config, SHAPE)
    with pytest.raises(UserError, match=r"made with --sample.variance"):
        runs.open_for_training(change(config, "sample", variance="fixed_small"), SHAPE)


def identify(source):
    return identity.identify(source, summarize(source))


def change_pixel(source):
    images = source.images.copy()
    images[3, 0, 0, 0] ^= 1
    return source._replace(images=images)


@pytest.mark.parametrize(
    ("find", "message"),
    [
        (lambda s: make_source(7), "7 images instead of 6"),
        (change_pixel, "other pixels"),
        (lambda s: s._replace(labels=1 - s.labels), "other labels"),
        (lambda s: s._replace(class_names=(".ipynb_checkpoints", "cat", "dog")), "the new class"),
        (lambda s: s._replace(class_names=("cat",)), "no class dog"),
        (lambda s: s._replace(class_names=("dog", "cat")), "the classes in another order"),
        (lambda s: s._replace(images=s.images[::-1]), "the same images in another order"),
    ],
)
def test_other_images_are_refused_and_the_difference_is_named(tmp_path, find, message):
    config, source = Config(run=tmp_path / "run"), make_source()
    runs.open_for_training(config, SHAPE, identify(source))
    before = (config.run / "config.json").read_bytes()
    for path in (None, Path("elsewhere")):
        with pytest.raises(UserError, match=f"no longer those .*{message}.*--train.init-from"):
            moved = change(config, "data", path=path)
            runs.open_for_training(moved, SHAPE, identify(find(source)))
    assert (config.run / "config.json").read_bytes() == before


def test_images_that_have_moved_are_accepted_if_they_are_the_same(tmp_path):
    config, images = Config(run=tmp_path / "run"), identify(make_source())
    runs.open_for_training(config, SHAPE, images)
    opening = runs.open_for_training(change(config, "data", path=Path("elsewhere")), SHAPE, images)
    assert opening.needs_work
    assert [str(one) for one in opening.changes] == ["--data.path elsewhere (was None)"]


def test_an_older_run_learns_which_images_it_has(config):
    images = identify(make_source())
    assert runs.load(config.run).images is None
    runs.open_for_training(config, SHAPE, images)
    assert runs.load(config.run).images == images


def test_large_data_are_sampled():
    whole = make_source(200)
    assert identify(whole).compared == 200
    assert identify(whole._replace(images=list(whole.images))).compared == 32


FLIPS = [("learning_rate", b"0.0002", b"0.0006"), ("seed", b'"seed": 0', b'"seed": 1')]


@pytest.mark.parametrize(("name", "old", "new"), FLIPS)
def test_a_changed_configuration_is_noticed(config, name, old, new):
    path = config.run / "config.json"
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(UserError, match="does not match its seal, so it was damaged or edited"):
        runs.load(config.run)


@pytest.mark.parametrize("flips", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_flipped_bit_of_a_configuration_gives_other_settings(config, flips):
    path = config.run / "config.json"
    raw, numbers = path.read_bytes(), np.random.default_rng(0)
    for bit in numbers.choice(8 * len(raw), flips, replace=False):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with contextlib.suppress(UserError):
            assert runs.load(config.run).config == config


def test_a_setting_that_followed_another_stays_when_the_other_grows(tmp_path):
    def make(**train):
        return Config(run=tmp_path / "run", train=TrainConfig(**train))

    runs.open_for_training(make(num_steps=500, warmup_steps=13, ema_decay=0.9), SHAPE)
    longer = make(num_steps=1000, warmup_steps=25, ema_decay=0.8)
    found = runs.adopt(longer, {"--train.num-steps"})
    assert found == change(longer, "train", warmup_steps=13)  # nothing else is taken
    assert runs.adopt(longer, {"--train.warmup-steps"}) == longer
    other = replace(longer, preset="pulfer")
    assert runs.adopt(other, ()) == other
    assert runs.adopt(replace(longer, run=tmp_path / "new"), ()).train.warmup_steps == 25
