"""Signals end a command at once if nothing can be lost; otherwise a job saves first."""

import os
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest

from jax_ddpm.jobs.display import is_stopping
from jax_ddpm.jobs.interrupt import BEFORE, Command, StopRequest, doing, install, restore


class Ended(BaseException):
    pass


@pytest.fixture
def end(monkeypatch):
    """Stands for `os._exit`."""
    end = Mock(side_effect=Ended)
    monkeypatch.setattr(os, "_exit", end)
    yield end
    is_stopping.clear()


@pytest.mark.parametrize(
    ("saves", "number", "code"),
    [
        (True, signal.SIGINT, 130),
        (True, signal.SIGTERM, 0),
        (True, signal.SIGHUP, 0),
        (False, signal.SIGINT, 130),
        (False, signal.SIGTERM, 143),
        (False, signal.SIGHUP, 129),
    ],
)
def test_a_command_with_nothing_to_lose_ends_at_once(end, capfd, saves, number, code):
    with pytest.raises(Ended):
        Command(saves=saves).answer(number)
    end.assert_called_once_with(code)
    assert capfd.readouterr().err.count("\n") == 2
    assert is_stopping.is_set()


def test_a_job_with_something_to_lose_is_asked_and_a_second_signal_ends_it(end, capfd):
    command, stop = Command(saves=True), StopRequest()
    command.request = stop
    stop.protect()
    with doing("compiling the sampler"):
        command.answer(signal.SIGTERM)
    assert stop.signum == signal.SIGTERM and not end.called
    assert "Stopping: compiling the sampler must end first." in capfd.readouterr().err
    with pytest.raises(Ended):
        command.answer(signal.SIGTERM)
    end.assert_called_once_with(143)
    assert "Stopped without saving the last steps (SIGTERM)" in capfd.readouterr().err


def test_a_job_that_has_saved_everything_ends_at_once(end, capfd):
    command, stop = Command(saves=True), StopRequest()
    command.request = stop
    stop.protect()
    assert stop.release("while drawing") is None
    with pytest.raises(Ended):
        command.answer(signal.SIGTERM)
    end.assert_called_once_with(0)
    assert "Stopped while drawing (SIGTERM)" in capfd.readouterr().err


def test_a_request_from_before_everything_was_saved_is_not_forgotten(end):
    command, stop = Command(saves=True), StopRequest()
    command.request = stop
    stop.protect()
    command.answer(signal.SIGINT)
    assert stop.release("while drawing") == signal.SIGINT


def test_a_job_outside_a_command_raises_at_the_second_signal(capfd):
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.signum == signal.SIGHUP
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)
    assert "Stopping after this step. Press Ctrl-C again" in capfd.readouterr().err


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        handlers = install(lambda number, frame: None)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        restore(handlers)
    finally:
        signal.signal(signal.SIGHUP, before)


WAITING = """
import sys, time
import jax_ddpm.cli.commands as commands

def run_command(args):
    print("ready")
    time.sleep(60)

commands.run_command = run_command
from jax_ddpm.cli import main
main()
"""


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [("train", signal.SIGINT, 130), ("train", signal.SIGHUP, 0), ("sample", signal.SIGTERM, 143)],
)
def test_a_command_that_waits_answers_in_one_line(command, number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert process.returncode == code
    assert error.startswith("\nStopped") and error.count("\n") == 2
    assert (BEFORE in error) == (command == "train")
