"""The validation loss of a run: what it measures, where it goes, and what it decides."""

import json
from dataclasses import replace

import numpy as np
import optax
import pytest
from PIL import Image

from jax_ddpm.data.sources import ImageSource
from jax_ddpm.errors import UserError
from jax_ddpm.jobs import train as loop
from jax_ddpm.jobs import validation
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.describe import describe_run
from jax_ddpm.jobs.parameters import load_state
from jax_ddpm.jobs.train_setup import build_loss
from jax_ddpm.jobs.validation import make_validation, measure, open_training_data
from jax_ddpm.runs import metrics
from jax_ddpm.runs.checkpoint import find_best_step, open_checkpoints
from jax_ddpm.runs.folder import load
from jax_ddpm.training.state import create_state
from tests.shared.compared_runs import assert_same_run, train_until_ctrl_c

NAMES = ("validation_loss", "validation_loss_raw", "trained_loss")
HOLDOUT = {"data": {"holdout": 0.25}, "train": {"validate_every": 3, "validate_images": 6}}


@pytest.fixture(scope="module")
def validated_run(make_config, tmp_path_factory):
    """A finished run of twelve steps with four validation losses, of 6 of 10 held-out images."""
    folder = tmp_path_factory.mktemp("runs") / "validated"
    loop.train(make_config(folder, **HOLDOUT))
    return folder


@pytest.mark.slow
@pytest.mark.guard
def test_metrics_and_the_board_hold_the_losses(validated_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = metrics.read(validated_run / "metrics.jsonl")
    assert [row.step for row in rows] == [3, 6, 9, 12]
    assert all(0 < getattr(row, name) < 10 for row in rows for name in NAMES)
    assert len({row.validation_loss for row in rows}) == 4
    events = EventAccumulator(str(validated_run / "tensorboard"))
    events.Reload()
    for name in NAMES:
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(r.step, pytest.approx(getattr(r, name), rel=1e-6)) for r in rows]
    with Image.open(validated_run / "loss.png") as image:
        assert image.format == "PNG"


@pytest.mark.slow
@pytest.mark.guard
def test_the_losses_are_those_of_the_saved_weights_without_dropout(validated_run):
    """Computed here from the checkpoint, image by image."""
    run = load(validated_run)
    parts = build(run.config, run.image_shape)
    state = load_state(run, parts)
    source, held_out = open_training_data(run.config)
    assert (len(source.images), len(held_out.images)) == (30, 10)
    check = make_validation(run.config, parts, build_loss(run.config, parts), source, held_out)
    row = metrics.read(run.metrics)[-1]
    assert measure(check, state, 12)._asdict() == {
        name: pytest.approx(getattr(row, name), rel=1e-6) for name in NAMES
    }
    check.batch_size = 1
    assert measure(check, state, 12).validation_loss == pytest.approx(row.validation_loss, rel=1e-6)
    pixels = check.held_out[0]
    assert len(pixels) == 6
    for image in pixels:
        assert (held_out.images == image).all((1, 2, 3)).any()


def test_a_run_without_validation_writes_what_it_always_wrote(trained_run):
    for line in (trained_run / "metrics.jsonl").read_text().splitlines():
        assert [*json.loads(line)] == ["step", "loss", "grad_norm", "learning_rate", "skipped"]


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(
    validated_run, make_config, tmp_path, monkeypatch
):
    config = make_config(tmp_path / "stopped", **HOLDOUT)
    train_until_ctrl_c(monkeypatch, config, 7)
    loop.train(config)
    assert_same_run(config.run, validated_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "train", [{"parallel": "pmap"}, {"parallel": "mesh"}, {"parallel": "mesh", "fsdp": 2}]
)
def test_every_way_to_use_devices_gives_the_same_losses(
    validated_run, make_config, tmp_path, train
):
    changes = {**HOLDOUT, "train": HOLDOUT["train"] | train}
    loop.train(make_config(tmp_path / "run", **changes))
    expected, found = (
        [[getattr(row, name) for name in NAMES] for row in metrics.read(path / "metrics.jsonl")]
        for path in (validated_run, tmp_path / "run")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # measured, pmap: 6e-8


@pytest.mark.slow
def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(
    make_config, tmp_path, monkeypatch, capsys
):
    """With losses that grow, the first checkpoint is the best, whatever the training loss."""
    grown = iter(range(1, 9))

    def grow(check, state, step):
        return validation.Validated(float(next(grown)), None, 1.0)

    monkeypatch.setattr(loop, "measure", grow)
    config = make_config(
        tmp_path / "run",
        data={"holdout": 0.25},
        train={"keep_best": True, "keep_checkpoints": 1, "num_steps": 18},
    )
    run = loop.train(config)
    out = capsys.readouterr().out
    assert "Validation loss: 10 held-out images, every 6 steps, averaged and raw weights" in out
    assert "the checkpoint with the lowest validation loss, step 6" in out
    with open_checkpoints(run.checkpoints) as checkpoints:
        assert find_best_step(checkpoints) == 6
    rows = metrics.read(run.metrics)
    assert [row.validation_loss for row in rows] == [None, 1, None, 2, None, 3]


def test_the_gap_to_the_training_images_is_named_once(capsys):
    held_out, trained = np.linspace(1, 2, 50), np.linspace(1, 2, 50)
    assert not validation.has_gap(held_out, trained)
    assert validation.has_gap(held_out * 1.2, trained)
    assert not validation.has_gap(held_out * 1.02, trained), "too small to matter"
    chance = np.random.default_rng(0).normal(size=50) * 10
    assert not validation.has_gap(held_out + chance - chance.mean() + 0.2, trained)

    state = create_state(1.3, optax.identity())

    def losses_of(factor, examples):
        pixels = examples[0]
        return pixels[:, 0, 0, 0] * (factor if pixels[0, 0, 0, 1] else 1.0)

    pixels = np.ones((50, 1, 1, 2), np.uint8)
    marks = np.array([[1, 1], [1, 0]], np.uint8)[:, None, None, None]
    examples = [(pixels * mark, None, np.arange(50), np.arange(50)) for mark in marks]
    check = validation.Validation(*examples, losses_of, 8, has_average=False)
    for step in (1, 2):
        assert measure(check, state, step).validation_loss == pytest.approx(1.3)
    out = capsys.readouterr().out
    assert out.count("is 30% above that of training images, 1: the network has begun") == 1
    assert out.startswith("Step 1: the loss of held-out images, 1.3,")


def test_the_test_part_or_other_images_validate(make_config, tmp_path, tiny_folder):
    config = make_config(tmp_path, data={"validation": "test"})
    source, held_out = open_training_data(config)
    assert len(source.images) == len(held_out.images) == 40
    path = tmp_path / "other.npy"
    np.save(path, source.images[:7])
    named = replace(config, data=replace(config.data, name="arrays", path=path))
    both = replace(named, data=replace(named.data, validation=str(path)))
    assert len(open_training_data(both)[1].images) == 7
    with pytest.raises(UserError, match=r"arrays has no images set aside for tests, so use"):
        open_training_data(named)
    larger = tmp_path / "larger.npy"
    np.save(larger, np.zeros((3, 9, 9), np.uint8))
    wrong = replace(both, data=replace(both.data, validation=str(larger)))
    with pytest.raises(UserError, match=r"images of 9x9x1, but those trained on are 8x8x1"):
        open_training_data(wrong)


def test_classes_of_other_images_are_numbered_as_those_trained_on(make_config, tmp_path):
    config = make_config(tmp_path, data={"validation": "other"}, model={"num_classes": 3})
    images = np.zeros((2, 8, 8, 1), np.uint8)
    source = ImageSource(images, np.array([0, 2]), ("ant", "bee", "cat"))
    found = ImageSource(images, np.array([0, 1]), ("bee", "cat"))
    aligned = validation.check_validation(found, source, config)
    assert aligned.labels.tolist() == [1, 2] and aligned.class_names == source.class_names
    with pytest.raises(UserError, match="has the class dog, but the images trained on have only"):
        validation.check_validation(found._replace(class_names=("bee", "dog")), source, config)


@pytest.mark.parametrize(
    ("data", "train", "message"),
    [
        ({"holdout": 1.0}, {}, r"--data\.holdout is 1\.0, but it must be at least 0 and less"),
        ({"holdout": 0.1, "validation": "test"}, {}, "left out with --data.holdout"),
        ({}, {"validate_every": 3}, "left out without images for it: add --data.holdout 0.05"),
        ({"holdout": 0.1}, {"validate_every": 4}, "a multiple of --train.log-every 3"),
        ({"holdout": 0.1}, {"validate_every": 9, "keep_best": True}, "a divisor of --train.checkp"),
        ({"holdout": 0.9}, {}, r"--train\.batch-size 8 is larger than the data set"),
    ],
)
def test_settings_that_cannot_work_are_refused(make_config, tmp_path, data, train, message):
    with pytest.raises(UserError, match=message):
        loop.train(make_config(tmp_path / "run", data=data, train=train))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_names_the_held_out_images(make_config, tmp_path):
    text = describe_run(make_config(tmp_path / "run", **HOLDOUT))
    assert "30 of 8x8x1" in text
    assert "the loss of 6 of 10 held-out images every 3 steps" in text


def test_validation_images_that_do_not_exist_are_named_with_their_flag(make_config, tmp_path):
    config = make_config(tmp_path / "run", data={"validation": "nothere"})
    with pytest.raises(UserError, match=r"--data.validation is nothere, but it must be test or"):
        loop.train(config)
