import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from jax_ddpm import runs
from jax_ddpm.config.presets import PRESETS
from jax_ddpm.config.run import Config, TrainConfig
from jax_ddpm.errors import UserError
from jax_ddpm.models import GuidedDiffusionConfig, UNetConfig
from jax_ddpm.runs import folder
from jax_ddpm.runs.recovery import find_steps

SHAPE = (28, 28, 1)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_the_round_trip_through_json(name):
    config = replace(PRESETS[name], run=Path("some/where"), seed=3)
    assert runs.from_dict(json.loads(json.dumps(runs.to_dict(config)))) == config


def test_a_folder_is_opened_again_with_the_same_settings(tmp_path):
    config = Config(run=tmp_path / "run")
    made = runs.open_for_training(config, SHAPE)
    assert made.is_new
    again = runs.open_for_training(config, SHAPE)
    assert again == runs.Opening(runs.load(tmp_path / "run"))


def change(config, section, **values):
    return replace(config, **{section: replace(getattr(config, section), **values)})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda c: replace(c, seed=5), "made with --seed 0, not 5"),
        (lambda c: change(c, "train", ema_decay=0.5), "made with --train.ema-decay 0.9999, not"),
        (lambda c: change(c, "data", holdout=0.5), "made with --data.holdout 0.0, not 0.5"),
        (
            lambda c: change(c, "model", channel_mult=(1,)),
            r"--model.channel-mult \[1, 2, 2, 2\], not \[1\]",
        ),
        (lambda c: change(c, "data", path=Path("x")), "made with --data.path None, not x"),
    ],
)
def test_other_settings_are_refused_with_flag_and_both_values(tmp_path, changed, message):
    config = Config(run=tmp_path / "run")
    runs.open_for_training(config, SHAPE)
    before = (tmp_path / "run/config.json").read_bytes()
    with pytest.raises(UserError, match=message):
        runs.open_for_training(changed(config), SHAPE)
    assert (tmp_path / "run/config.json").read_bytes() == before


def test_images_of_another_shape_are_refused(tmp_path):
    runs.open_for_training(Config(run=tmp_path / "run"), SHAPE)
    with pytest.raises(
        UserError, match=r"images of shape \(28, 28, 1\), but the data has \(32, 32, 3\)"
    ):
        runs.open_for_training(Config(run=tmp_path / "run"), (32, 32, 3))


def test_where_and_how_a_run_is_computed_may_change(tmp_path):
    config = Config(run=tmp_path / "run")
    runs.open_for_training(config, SHAPE)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = change(replace(config, run=tmp_path / "moved"), "train", parallel="pmap")
    opening = runs.open_for_training(moved, SHAPE)
    assert opening.run.config.train.parallel == "pmap"
    assert opening.changes == ()


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=f"{tmp_path} exists and is not a run folder.*--run"):
        runs.open_for_training(Config(run=tmp_path), SHAPE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_not_a_run_folder(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="not a run folder"):
        runs.open_for_training(Config(run=tmp_path / "file"), SHAPE)
    assert (tmp_path / "file").read_text() == "precious"


def test_an_empty_folder_becomes_a_run(tmp_path):
    assert runs.open_for_training(Config(run=tmp_path), SHAPE).run == runs.load(tmp_path)


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_a_configuration_is_not_a_run(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{name} is not a run folder: it has no config.json"):
        runs.load(tmp_path / name)


def make_document(tmp_path):
    runs.open_for_training(Config(run=tmp_path / "run"), SHAPE)
    document = json.loads((tmp_path / "run/config.json").read_text())
    del document["seal"]
    return document


def load_text(tmp_path, text):
    (tmp_path / "run/config.json").write_bytes(text)
    return runs.load(tmp_path / "run")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"format": 1}'])
def test_a_damaged_configuration_is_refused_in_one_sentence(tmp_path, text):
    make_document(tmp_path)
    with pytest.raises(UserError, match=r"config.json is not the configuration of a run") as caught:
        load_text(tmp_path, text)
    assert "\n" not in str(caught.value)


DAMAGE = [
    (("config", "junk"), 1),
    (("config", "seed"), "x"),
    (("config", "seed"), 1.5),
    (("config", "model", "channel_mult"), 5),
    (("config", "model", "channel_mult"), ["a"]),
    (("config", "diffusion", "schedule"), "unheard-of"),
    (("config", "data", "path"), 5),
    (("config", "train", "learning_rate"), None),
    (("config", "train", "learning_rate"), "fast"),
    (("config", "train", "learning_rate"), "0.1"),
    (("config", "train", "learning_rate"), True),
    (("config", "train"), []),
    (("image_shape",), [28, 28]),
    (("image_shape",), ["a", 28, 1]),
    (("image_shape",), None),
]


@pytest.mark.parametrize(("path", "value"), DAMAGE)
def test_a_configuration_with_a_wrong_value_is_refused(tmp_path, path, value):
    whole = make_document(tmp_path)
    inner = whole
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(UserError, match=r"config.json is not the configuration of a run"):
        load_text(tmp_path, json.dumps(whole).encode())


def test_a_configuration_of_another_format_is_refused(tmp_path):
    whole = make_document(tmp_path) | {"format": 99}
    with pytest.raises(UserError, match="has format 99, but this version reads 1 to 4"):
        load_text(tmp_path, json.dumps(whole).encode())


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path):
    with (
        runs.lock_folder(tmp_path / "run"),
        pytest.raises(UserError, match=rf"training in .*run \(process {os.getpid()} on .*\w\)"),
        runs.lock_folder(tmp_path / "run"),
    ):
        pass
    with runs.lock_folder(tmp_path / "run"):
        pass


def test_leftovers_of_a_process_killed_at_its_start_do_not_stop_the_next(tmp_path):
    config = Config(run=tmp_path / "run")
    config.run.mkdir()
    for name in ("lock", ".config.json.123.tmp"):
        (config.run / name).write_text("{")
    with runs.lock_for_training(config, SHAPE) as opening:
        assert runs.load(config.run) == opening.run
    assert {path.name for path in config.run.iterdir()} == {"lock", "config.json"}


def test_a_refused_folder_gets_no_lock(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with (
        pytest.raises(UserError, match="is not a run folder"),
        runs.lock_for_training(Config(run=tmp_path), SHAPE),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("warmup", [False, True])
def test_a_run_of_the_first_format_is_read(tmp_path, warmup):
    old = make_document(tmp_path) | {"format": 1}
    del old["config"]["model"]["architecture"]
    for name in ("ema_form", "ema_every", "ema_update_after", "ema_power", "clip_eps"):
        del old["config"]["train"][name]
    old["config"]["train"]["ema_warmup"] = warmup
    (tmp_path / "config.json").write_text(json.dumps(old))
    run = runs.load(tmp_path)
    assert run.config.train.ema_form == ("ramp" if warmup else "constant")
    assert isinstance(run.config.model, UNetConfig)


@pytest.mark.parametrize(
    ("used", "remat", "expected"),
    [
        (True, "none", "nothing_saveable"),
        (True, "dots_saveable", "dots_saveable"),
        (False, "none", "none"),
    ],
)
def test_a_run_of_the_third_format_recomputes_features_as_before(tmp_path, used, remat, expected):
    config = Config(run=tmp_path, model=GuidedDiffusionConfig(), train=TrainConfig(remat=remat))
    old = runs.describe(runs.Run(tmp_path, config, SHAPE)) | {"format": 3}
    old["config"]["model"]["use_checkpoint"] = used
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert runs.load(tmp_path).config == replace(config, train=TrainConfig(remat=expected))


def test_an_unknown_architecture_is_refused(tmp_path):
    other = make_document(tmp_path)
    other["config"]["model"]["architecture"] = "transformer"
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="no architecture 'transformer'"):
        runs.load(tmp_path)


def test_imported_weights_take_new_settings_until_they_are_trained(tmp_path):
    config = Config(run=tmp_path / "run")
    runs.write_config(runs.Run(config.folder, config, SHAPE, imported_from="torch_ref"))
    slower = change(config, "train", learning_rate=1e-5)
    assert runs.open_for_training(slower, SHAPE).run.imported_from == "torch_ref"
    assert runs.load(config.folder).config == slower
    with pytest.raises(UserError, match=r"--model.channels 128, not 64"):
        runs.open_for_training(change(slower, "model", channels=64), SHAPE)
    (config.folder / "metrics.jsonl").write_text("")  # the first step has been logged
    with pytest.raises(UserError, match=r"--train.learning-rate"):
        runs.open_for_training(config, SHAPE)


def test_a_folder_of_checkpoints_on_another_disk_is_followed_if_the_owner_made_the_link(
    tmp_path, monkeypatch
):
    config = Config(run=tmp_path / "run")
    runs.open_for_training(config, SHAPE)
    link = config.run / "checkpoints"
    link.symlink_to(tmp_path / "disk")
    with pytest.raises(UserError, match=r"checkpoints is a link to .*disk, which is not there"):
        runs.load(config.run)
    (tmp_path / "disk").mkdir()
    assert runs.load(config.run).config == config
    (tmp_path / "disk" / "5").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"5 is a link out of"):
        runs.load(config.run)
    (tmp_path / "disk" / "5").unlink()
    monkeypatch.setattr(folder, "_get_owner", lambda path: 7 if path.is_symlink() else 8)
    with pytest.raises(UserError, match=r"that the owner of the folder did not make"):
        runs.load(config.run)


def test_a_file_in_place_of_a_folder_is_refused_before_training(tmp_path):
    runs.write_config(runs.Run(tmp_path, Config(run=tmp_path), (8, 8, 1)))
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints must be a folder, but it is a file"):
        runs.load(tmp_path)


def test_only_numbers_of_steps_name_checkpoints(tmp_path):
    for name in ("0", "120", "0120", "-5", "٣", "7.tmp", str(2**31), "9" * 200):
        (tmp_path / name).mkdir()
    assert find_steps(tmp_path) == [0, 120]
