"""Evaluation while training: what it measures, where it goes, and that it changes nothing else."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.config.jobs import QualityJob
from jax_ddpm.errors import UserError
from jax_ddpm.jobs import features, quality
from jax_ddpm.jobs import train as loop
from jax_ddpm.jobs.describe import describe_run
from jax_ddpm.jobs.evaluation import (
    Evaluated,
    Measured,
    choose_training_features,
    compute_figures,
    format_figures,
)
from jax_ddpm.jobs.features import FeatureNetwork
from jax_ddpm.jobs.progress import Progress
from jax_ddpm.jobs.train_records import find_loss
from jax_ddpm.jobs.validation import Validated
from jax_ddpm.quality.frechet import fit_gaussian
from jax_ddpm.quality.measures import Figure, Sets
from jax_ddpm.runs import metrics
from jax_ddpm.runs.checkpoint import find_best_step, open_checkpoints
from tests.shared.compared_runs import assert_same_run, load_newest_state, train_until_ctrl_c

# 64 images, so that the program for sample grids draws them.
EVALUATED = {"evaluate_every": 3, "evaluate_images": 64}
BEST = {"keep_best": True, "best_by": "distance"}


def describe_brightness(params, images):
    x = images.astype(jnp.float32).reshape(len(images), -1) / 255
    found = jnp.stack([x.mean(1), x.std(1), x.max(1)], axis=1)
    return found, 5 * found


TITLES = {"frechet": "FD (brightness)", "kernel": "KD (brightness)", "score": "a score"}
NETWORK = FeatureNetwork(
    "brightness", "brightness", TITLES, "0", jnp.zeros(()), describe_brightness
)


@pytest.fixture(scope="module")
def brightness(tmp_path_factory):
    """Every job compares images in features that cost nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(loop, "choose_training_features", lambda config, shape: NETWORK)
        patch.setattr(quality, "choose_features", lambda job, shape: NETWORK)
        yield


@pytest.fixture(scope="module")
def evaluated_run(brightness, make_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "evaluated"
    loop.train(make_config(folder, train=EVALUATED | BEST))
    return folder


@pytest.mark.slow
@pytest.mark.guard
def test_the_figures_are_those_of_the_command_and_training_is_not_disturbed(
    evaluated_run, trained_run, tmp_path
):
    rows = metrics.read(evaluated_run / "metrics.jsonl")
    assert [row.step for row in rows] == [3, 6, 9, 12]
    assert len({row.frechet for row in rows}) == 4
    out = quality.evaluate_quality(
        evaluated_run, QualityJob(num=64, out=tmp_path / "a.json", measures=("fid", "kid", "is"))
    )
    (result,) = json.loads(out.read_text())["results"]
    for name in ("frechet", "kernel", "score"):
        value = result["figures"][name]["value"]
        assert getattr(rows[-1], name) == pytest.approx(value, rel=1e-6), name  # measured: 0
    plain = metrics.read(trained_run / "metrics.jsonl")
    assert [row._replace(frechet=None, kernel=None, score=None) for row in rows] == plain
    found, state = load_newest_state(evaluated_run), load_newest_state(trained_run)
    for name, array in state.items():
        assert found[name].tobytes() == array.tobytes(), name
    with open_checkpoints(evaluated_run / "checkpoints") as checkpoints:
        best = find_best_step(checkpoints)
    assert best == min((row for row in rows if row.step % 6 == 0), key=lambda r: r.frechet).step


@pytest.mark.slow
@pytest.mark.guard
def test_a_resumed_run_equals_an_uninterrupted_one(
    evaluated_run, make_config, tmp_path, monkeypatch
):
    config = make_config(tmp_path / "stopped", train=EVALUATED | BEST)
    train_until_ctrl_c(monkeypatch, config, 7)
    loop.train(config)
    assert_same_run(config.run, evaluated_run)


@pytest.mark.slow
def test_the_board_and_the_output_show_the_figures(brightness, make_config, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(tmp_path / "run", train=EVALUATED | BEST | {"evaluate_every": 6})
    loop.train(config)
    out = capsys.readouterr().out
    assert "Evaluation: 64 images every 6 steps, brightness" in out
    assert out.count("FD (brightness) ") == 2 and "Step 6: FD (brightness) " in out
    rows = metrics.read(config.run / "metrics.jsonl")
    assert [row.frechet is None for row in rows] == [True, False, True, False]
    events = EventAccumulator(str(config.run / "tensorboard"))
    events.Reload()
    for name in ("frechet", "kernel", "score"):
        shown = {event.step: event.value for event in events.Scalars(name)}
        expected = {row.step: getattr(row, name) for row in rows if row.step % 6 == 0}
        assert shown == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("train", [{"parallel": "pmap"}, {"parallel": "mesh", "fsdp": 2}])
def test_every_way_to_use_devices_gives_the_same_distances(
    evaluated_run, make_config, tmp_path, train
):
    loop.train(make_config(tmp_path / "run", train=EVALUATED | BEST | train))
    expected, found = (
        [row.frechet for row in metrics.read(path / "metrics.jsonl")]
        for path in (evaluated_run, tmp_path / "run")
    )
    # A pixel that is rounded to its neighbour moves a feature by 1 / (64 * 255).
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_best_checkpoint_goes_by_what_was_asked_for():
    progress = Progress((), (1.0, 2.0))
    measured = Measured(Validated(3.0, None, 1.0), Evaluated(4.0, 0.1, 2.0))
    found = [find_loss(by, progress, measured) for by in ("loss", "validation", "distance")]
    assert found == [1.5, 3.0, 4.0]
    unknown = [find_loss(by, progress, Measured()) for by in ("validation", "distance")]
    assert all(map(math.isnan, unknown))
    assert "validation_loss_raw" not in measured.list_figures()
    assert measured.list_figures()["frechet"] == 4.0


def test_figures_that_images_do_not_have_are_not_numbers(capsys):
    drawn, real = np.full((20, 2), np.nan), np.eye(3, 2)
    logits = np.zeros((20, 3))
    figures = compute_figures(Sets(drawn, logits, fit_gaussian(real), real))
    assert math.isnan(figures["frechet"].value)
    assert figures["score"].value == pytest.approx(1)
    assert "frechet was not measured: the features of some images are" in capsys.readouterr().out
    text = format_figures({"frechet": Figure(12.345, 0.5), "score": Figure(2.0)}, TITLES)
    assert text == "FD (brightness) 12.35 +- 0.50, a score 2"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"evaluate_every": 4}, r"evaluate-every is 4, .* a multiple of --train.log-every 3"),
        ({"evaluate_every": 3, "evaluate_images": 19}, "evaluate-images is 19, .* at least 20"),
        ({"evaluate_features": "fashion"}, "left out without --train.evaluate-every"),
        (BEST, "best-by is distance, .* left out without --train.evaluate-every"),
        ({"best_by": "loss"}, "left out without --train.keep-best"),
        ({"best_by": "validation", "keep_best": True}, "another without images for it"),
        ({"evaluate_every": 9} | BEST, "a divisor of --train.checkpoint-every 6"),
        ({"evaluate_every": 3, "evaluate_features": "mine.py:f"}, "or the file of Inception"),
        ({"evaluate_every": 3, "evaluate_features": "fashion"}, "takes grey images of 28x28"),
        ({"evaluate_every": 3}, r"--train.evaluate-every 3: .* could not be downloaded"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_run_folder_is_made(
    make_config, tmp_path, monkeypatch, train, message
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    nowhere = features.INCEPTION._replace(url="http://127.0.0.1:9/weights.pth")
    monkeypatch.setattr(features, "INCEPTION", nowhere)
    with pytest.raises(UserError, match=message):
        loop.train(make_config(tmp_path / "run", train=train))
    assert not (tmp_path / "run").exists()


def test_small_grey_images_are_evaluated_in_the_features_that_ship(make_config, tmp_path):
    config = make_config(tmp_path / "run", train=EVALUATED)
    assert choose_training_features(config, (28, 28, 1)).name == "fashion"
    assert choose_training_features(make_config(tmp_path / "run"), (28, 28, 1)) is None
    text = describe_run(make_config(tmp_path / "run", train=EVALUATED))
    assert "the distance of 64 images every 3 steps" in text
