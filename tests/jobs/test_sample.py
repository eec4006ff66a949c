import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jax_ddpm import runs
from jax_ddpm.config.jobs import SampleJob, Weights
from jax_ddpm.errors import UserError
from jax_ddpm.jobs import sample as generate
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.generate import image_keys, image_labels
from jax_ddpm.jobs.parameters import choose_step, load_state
from jax_ddpm.jobs.sample import sample_run


def mark_slow(*cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.fixture(scope="module")
def draw(trained_run, tmp_path_factory):
    """`draw({"steps": 3}, num=..., ...)`: the images that the job writes, [n, h, w, c]."""
    folder = tmp_path_factory.mktemp("drawn")

    def run(changes=None, weights="ema", **job):
        job = {"num": 6, "batch_size": 4, "out": folder / "images.npz"} | job
        out = sample_run(trained_run, SampleJob(**job), changes, weights=Weights(weights))
        with np.load(out) as arrays:
            assert arrays.files == ["arr_0"]
            return arrays["arr_0"]

    return run


@pytest.fixture(scope="module")
def six(draw):
    return draw()


def test_an_npz_holds_uint8_images_channels_last(six):
    assert (six.shape, six.dtype) == ((6, 8, 8, 1), np.uint8)
    assert len(np.unique(six.reshape(6, -1), axis=0)) == 6


def test_the_same_command_gives_the_same_bytes(draw, six):
    np.testing.assert_array_equal(draw(), six)


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize(("num", "batch_size"), [(3, 4), *mark_slow((6, 6), (8, 4), (1, 1))])
def test_an_image_does_not_depend_on_how_many_are_drawn_with_it(draw, six, num, batch_size):
    found = draw(num=num, batch_size=batch_size)
    n = min(num, 6)
    assert len(found) == num
    # Rounding differs between batch sizes. Measured: 0 of 255.
    assert np.abs(found[:n].astype(int) - six[:n]).max() <= 1


def test_another_seed_gives_other_images(draw, six):
    assert np.abs(draw(seed=1).astype(int) - six).max() > 10


@pytest.mark.slow
@pytest.mark.guard
def test_raw_and_averaged_parameters_give_different_images(draw, six):
    assert np.abs(draw(weights="raw").astype(int) - six).max() > 0
    np.testing.assert_array_equal(draw(weights="ema"), six)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"steps": 2}, *mark_slow([{"eta": 1.0}], [{"sampler": "ddpm", "steps": 8}])]
)
def test_settings_of_the_run_can_be_changed(draw, six, settings):
    assert np.abs(draw(settings).astype(int) - six).max() > 0


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize(("suffix", "frames"), [(".png", 1), (".PNG", 1), (".gif", 5)])
def test_pictures_show_all_images(trained_run, tmp_path, suffix, frames):
    out = sample_run(trained_run, SampleJob(6, tmp_path / f"new/a{suffix}", batch_size=4))
    with Image.open(out) as image:
        assert image.format == suffix[1:].upper()
        assert getattr(image, "n_frames", 1) == frames
        assert image.size == (3 * 58 + 2, 2 * 58 + 2)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.slow
def test_without_a_name_the_picture_goes_into_the_run_folder(trained_run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained_run, folder)
    out = sample_run(folder, SampleJob(6, batch_size=4, seed=3))
    assert out == folder / "samples" / "num_6_seed_3.png"
    assert out.is_file()
    assert f"Wrote {out}" in capsys.readouterr().out
    another = sample_run(folder, SampleJob(1, seed=3), {"sampler": "euler"})
    assert another == folder / "samples" / "euler_num_1_seed_3.png"


def forbid_work(*args, **kwargs):
    raise AssertionError("it began to work before it checked the settings")


@pytest.mark.parametrize("name", ["a.jpg", "a.npz.gz"])
def test_an_unknown_suffix_is_refused_before_any_work(trained_run, tmp_path, monkeypatch, name):
    for step in ("build", "load_params", "make_generate_fn"):
        monkeypatch.setattr(generate, step, forbid_work)
    with pytest.raises(UserError, match=f"--out .*{name} must end in .png"):
        sample_run(trained_run, SampleJob(out=tmp_path / name))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"job": {"num": 0}}, "--num is 0, .* at least 1"),
        ({"job": {"batch_size": 0}}, "--batch-size is 0, .* at least 1"),
        ({"changes": {"steps": 9}}, "between 1 and T = 8, got 9"),
        ({"changes": {"steps": 0}}, "between 1 and T = 8, got 0"),
        ({"changes": {"eta": 2.0}}, "eta is 2.0"),
        ({"weights": {"weights": "0.5"}}, "--weights is 0.5, but this run has ema, raw, 0.9"),
        (
            {"weights": {"posthoc_ema": 0.08}},
            "--posthoc-ema 0.08 needs a run trained with --train.posthoc-ema",
        ),
        ({"weights": {"posthoc_step": 7}}, "--posthoc-step 7 needs --posthoc-ema"),
        ({"changes": {"spacing": "quad", "respacing": "4"}}, "each choose the timesteps"),
        ({"job": {"seed": -1}}, "--seed"),
        ({"job": {"seed": 2**32}}, "--seed"),
        ({"job": {"out": Path("/dev/null/a.png")}}, "/dev/null/a.png could not be written"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(
    trained_run, monkeypatch, asked, message
):
    for step in ("load_params", "make_generate_fn"):
        monkeypatch.setattr(generate, step, forbid_work)
    job, weights = SampleJob(**asked.get("job", {})), Weights(**asked.get("weights", {}))
    with pytest.raises(UserError, match=message):
        sample_run(trained_run, job, asked.get("changes"), weights=weights)


def test_a_run_without_checkpoint_is_refused(trained_run, tmp_path):
    shutil.copy(trained_run / "config.json", tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path} has no checkpoint yet: train it first"):
        sample_run(tmp_path, SampleJob())
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint"):
        sample_run(tmp_path, SampleJob())


def test_a_checkpoint_of_another_network_is_refused(trained_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / "run")
    run = runs.load(trained_run)
    other = replace(run.config, model=replace(run.config.model, channels=8))
    runs.write_config(replace(run, folder=tmp_path / "run", config=other))
    with pytest.raises(
        UserError, match=r"belongs to another network: .* of shape .* there, .* here"
    ):
        sample_run(tmp_path / "run", SampleJob())


def test_keys_of_images_come_from_seed_and_number():
    def bits(seed, *numbers):
        return np.asarray(jax.random.key_data(image_keys(seed, np.array(numbers)))).tolist()

    assert bits(0, 5, 2)[0] == bits(0, 5)[0]
    assert len({tuple(key) for seed in range(3) for key in bits(seed, *range(10))}) == 30


def test_labels_are_all_classes_or_the_chosen_ones_in_turn():
    indices = np.arange(8, 12)
    assert image_labels(None, (), indices) is None
    assert image_labels(10, (), indices).tolist() == [8, 9, 0, 1]
    assert image_labels(10, (3,), indices).tolist() == [3, 3, 3, 3]
    assert image_labels(10, (3, 5), indices).tolist() == [3, 5, 3, 5]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("best", r"without --train.keep-best"),
        ("7", r"--checkpoint 7: .* has no such checkpoint, but those of steps 6, 12"),
        ("bets", r"must be newest, best or STEP: did you mean 'best'"),
        ("-1", r"must be newest, best or STEP"),
    ],
)
def test_a_checkpoint_that_a_run_does_not_have_is_refused(trained_run, tmp_path, wanted, message):
    """Also the best of a run that kept none because it is the best."""
    job = SampleJob(1, tmp_path / "s.png")
    with pytest.raises(UserError, match=message):
        sample_run(trained_run, job, weights=Weights(checkpoint=wanted))


def test_any_checkpoint_that_was_kept_can_be_loaded(trained_run):
    run = runs.load(trained_run)
    parts = build(run.config, run.image_shape)
    steps = [int(load_state(run, parts, wanted).step) for wanted in ("newest", "6", "12")]
    assert steps == [12, 6, 12]
    assert [choose_step(run, wanted) for wanted in ("newest", "6")] == [12, 6]
