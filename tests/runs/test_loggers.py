"""The programs that show how training goes: each gets everything once, also when a run resumes."""

import json
import sys
from typing import get_args

import numpy as np
import pytest

from jax_ddpm import runs
from jax_ddpm.config.run import validate
from jax_ddpm.config.train import LoggerName
from jax_ddpm.errors import UserError
from jax_ddpm.runs import loggers
from jax_ddpm.runs.loggers import LOGGERS, choose_loggers, flatten_settings, open_loggers
from jax_ddpm.runs.loggers.marks import Marks
from jax_ddpm.runs.loggers.tensorboard import Board
from jax_ddpm.runs.loggers.wandb import WeightsAndBiases

GREY = np.zeros((8, 8, 1), np.uint8)


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


@pytest.fixture
def open_board(tmp_path):
    boards = []

    def make():
        boards.append(Board(tmp_path))
        return boards[-1]

    yield make
    for board in boards:
        board.close()


def test_tensorboard_reads_curves_images_and_settings(tmp_path, open_board):
    grey, colour = (np.arange(3 * 5 * c, dtype=np.uint8).reshape(3, 5, c) for c in (1, 3))
    board = open_board()
    board.begin(0, {"train.num_steps": 12})
    for step in (0, 1, 300, 2**40):
        board.add_scalars({"loss": step / 3, "rate": 1.0}, step)
    board.add_scalars({"loss": float("nan")}, 2**40 + 1)
    board.add_image("grey", grey, 7)
    board.add_image("colour", colour, 2**33)
    events = read_events(tmp_path)
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found[:-1] == [(step, float(np.float32(step / 3))) for step in (0, 1, 300, 2**40)]
    assert np.isnan(found[-1][1]) and len(events.Scalars("rate")) == 4
    for name, step in (("grey", 7), ("colour", 2**33)):
        (image,) = events.Images(name)
        assert (image.step, image.width, image.height) == (step, 5, 3)
        assert image.encoded_image_string.startswith(b"\x89PNG")
    (text,) = events.Tensors("settings")
    assert b"| train.num_steps | `12` |" in text.tensor_proto.string_val[0]


def test_a_resumed_run_makes_tensorboard_forget_the_steps_after(tmp_path, open_board):
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        board = open_board()
        board.begin(start, {})
        for step in steps:
            board.add_scalars({"loss": 10 * start + step}, step)
    assert len(list(tmp_path.iterdir())) == 2
    found = [(event.step, event.value) for event in read_events(tmp_path).Scalars("loss")]
    assert found == [(1, 1), (2, 2), (3, 23), (4, 24)]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    board = Board(tmp_path / "file" / "here")
    with pytest.raises(UserError, match=r"file/here could not be written"):
        board.add_scalars({"loss": 1.0}, 1)


def test_every_choice_is_a_logger_and_none_stands_alone(make_config, tmp_path, monkeypatch):
    assert (*LOGGERS, "none") == get_args(LoggerName)
    assert choose_loggers(("none",)) == ()
    with pytest.raises(UserError, match="none alone"):
        validate(make_config(tmp_path, train={"logger": ("none", "wandb")}))
    monkeypatch.setattr(loggers, "is_installed", lambda name: False)
    assert choose_loggers(None) == ()
    with pytest.raises(UserError, match=r"pip install 'jax_ddpm\[wandb\]'"):
        choose_loggers(("wandb",))


def test_a_folder_named_like_a_package_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "a_folder_of_logs").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not loggers.is_installed("a_folder_of_logs")
    assert loggers.is_installed("json")


def test_marks_that_cannot_be_read_count_as_none(tmp_path):
    marks = Marks(tmp_path / "marks.json")
    marks.name("a")
    assert [marks.advance("loss", step) for step in (3, 3, 2, 4)] == [True, False, False, True]
    again = Marks(marks.path)
    again.load()
    assert again == marks
    marks.path.write_text('{"id": 1, "steps": []}')
    again.load()
    assert (again.id, again.steps) == (None, {})


class FakeWandb:
    """Keeps what Weights & Biases would be given."""

    def __init__(self):
        self.calls, self.rows, self.id = [], [], "abc"

    def init(self, **settings):
        self.calls.append(settings)
        return self

    def log(self, values, step):
        self.rows.append((step, values))

    def finish(self):
        self.rows.append("finished")

    def Image(self, pixels):
        return pixels.shape


def test_weights_and_biases_gets_each_step_once(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for start, steps in ((0, (3, 6)), (3, (6, 9))):
        logger = WeightsAndBiases(tmp_path / "run")
        logger.begin(start, {"seed": 0})
        for step in steps:
            logger.add_scalars({"loss": 1.0}, step)
        logger.add_image("samples", GREY, 6)
        logger.close()
    assert [call["id"] for call in fake.calls] == [None, "abc"]
    assert [call["config"] for call in fake.calls] == [{"seed": 0}] * 2
    loss = {"loss": 1.0}
    expected = [(3, loss), (6, loss), (6, {"samples": (8, 8)}), "finished", (9, loss), "finished"]
    assert fake.rows == expected


@pytest.fixture
def log_twice(make_config, tmp_path, monkeypatch):
    """Log steps 3 and 6, and then resume after 3 with steps 6 and 9; returns the run."""

    def log(name):
        pytest.importorskip(name)
        monkeypatch.chdir(tmp_path)
        config = make_config(tmp_path / "run", train={"logger": (name,)})
        run = runs.Run(config.folder, config, (8, 8, 1))
        for start, steps in ((0, (3, 6)), (3, (6, 9))):
            with open_loggers(run) as (logger,):
                logger.begin(start, flatten_settings(run))
                for step in steps:
                    logger.add_scalars({"loss": float(step), "frechet": 1.0}, step)
                logger.add_image("samples", GREY, 6)
        return run

    return log


@pytest.mark.slow
def test_mlflow_holds_settings_curves_and_samples_once(log_twice, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    log_twice("mlflow")
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("jax_ddpm").experiment_id
    (found,) = client.search_runs([experiment])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["train.num_steps"] == "12"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(3, 3.0), (6, 6.0), (9, 9.0)]
    assert len(client.get_metric_history(found.info.run_id, "frechet")) == 3
    (file,) = client.list_artifacts(found.info.run_id, "samples")
    assert file.path == "samples/step_0000006.png"


@pytest.mark.slow
def test_weights_and_biases_works_offline(log_twice, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = log_twice("wandb")
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    id_ = json.loads((run.folder / "wandb.json").read_text())["id"]
    assert len(folders) == 2 and all(folder.name.endswith(id_) for folder in folders)
    assert len(list((tmp_path / "wandb").rglob("samples_6_*.png"))) == 1
