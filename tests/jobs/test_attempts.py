"""Pictures and TensorBoard's log may fail: training loses no step."""

import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.jobs import train as loop
from jax_ddpm.jobs import train_records
from jax_ddpm.jobs.attempts import Attempts
from jax_ddpm.runs.loggers.tensorboard import Board
from tests.shared.compared_runs import assert_same_run


def test_a_failure_is_said_once_and_the_job_goes_on(capsys):
    attempts = Attempts()
    for _ in range(3):
        with attempts.attempt("the picture"):
            raise OSError(28, "No space left on device")
    with attempts.attempt("the log"):
        raise UserError("a/b could not be written")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "the picture failed, and the job goes on: No space left on device",
        "the log failed, and the job goes on: a/b could not be written",
    ]
    assert attempts.failures.keys() == {"the picture", "the log"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_failure_passes(error):
    with pytest.raises(error), Attempts().attempt("the picture"):
        raise error


def test_several_processes_do_not_go_on_alone(monkeypatch):
    monkeypatch.setattr("jax_ddpm.jobs.attempts.is_distributed", lambda: True)
    with pytest.raises(RuntimeError), Attempts().attempt("the picture", by_all=True):
        raise RuntimeError
    with Attempts().attempt("the picture"):
        raise RuntimeError
    monkeypatch.undo()
    with Attempts().attempt("the picture", by_all=True):  # one process does
        raise RuntimeError


@pytest.mark.guard
@pytest.mark.slow
def test_a_run_whose_pictures_and_log_fail_takes_every_step_and_is_finished_by_the_next_call(
    trained_run, make_config, tmp_path, monkeypatch, capsys
):
    def fail(*args, **keywords):
        raise OSError(28, "No space left on device")

    config = make_config(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(train_records, "write_samples", fail)
        patch.setattr(train_records, "save_loss_curve", fail)
        patch.setattr(Board, "_write", fail)
        with pytest.raises(UserError, match=r"all 12 steps are done .* samples\.png is missing"):
            loop.train(config)
    error = capsys.readouterr().err
    assert error.count("the sample grid failed, and the job goes on: No space left") == 2
    assert error.count("TensorBoard's log failed") == 2  # while training, and at the end
    loop.train(config)
    assert_same_run(config.run, trained_run)
