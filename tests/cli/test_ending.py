import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from jax.errors import JaxRuntimeError

import jax_ddpm
import jax_ddpm.cli
from jax_ddpm.cli.commands import prints_only
from jax_ddpm.cli.ending import exit_after, suggest
from jax_ddpm.errors import Stopped, UserError


def make_raiser(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (lambda: None, 0),
        (make_raiser(UserError("this is wrong")), "error: this is wrong"),
        (make_raiser(FileNotFoundError(2, "No such file", "a/b")), "error: a/b: No such file"),
        (make_raiser(Stopped(signal.SIGINT, "stopped")), 130),
        (make_raiser(Stopped(signal.SIGTERM, "stopped")), 0),
        (make_raiser(KeyboardInterrupt()), 130),
        (
            make_raiser(MemoryError("7 TiB")),
            "error: there is not enough memory (7 TiB): see docs/scaling.md",
        ),
    ],
)
def test_the_exit_code_says_how_a_command_ended(command, code):
    with pytest.raises(SystemExit) as caught:
        exit_after(command)
    assert caught.value.code == code


def test_errors_of_late_reading_threads_are_silenced_but_others_are_not(monkeypatch):
    heard = Mock()
    monkeypatch.setattr(sys, "unraisablehook", heard)
    late = SimpleNamespace(exc_value=RuntimeError("Event loop is closed"))
    other = SimpleNamespace(exc_value=RuntimeError("another"))

    def command():
        sys.unraisablehook(late)
        sys.unraisablehook(other)

    with pytest.raises(SystemExit):
        exit_after(command)
    heard.assert_called_once_with(other)
    assert sys.unraisablehook is heard


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_after(make_raiser(ZeroDivisionError()))


def test_a_full_device_gives_one_sentence_and_other_device_errors_a_traceback():
    with pytest.raises(SystemExit, match=r"error: the device does not have enough memory: .*accum"):
        exit_after(
            make_raiser(JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."))
        )
    with pytest.raises(JaxRuntimeError, match="INTERNAL"):
        exit_after(make_raiser(JaxRuntimeError("INTERNAL: no such luck")))


def test_a_platform_that_jax_lacks_gives_one_sentence(monkeypatch):
    """Both errors as JAX raises them, for `nonsense` and for `cuda` without a GPU."""
    unknown = "Unable to initialize backend 'nonsense': it is not known. (set JAX_PLATFORMS='')"
    for name, error in (("nonsense", RuntimeError(unknown)), ("cuda", AssertionError())):
        monkeypatch.setenv("JAX_PLATFORMS", name)
        monkeypatch.setattr("jax.devices", Mock(side_effect=error))
        with pytest.raises(SystemExit, match=f"JAX_PLATFORMS is '{name}', but JAX has no such"):
            exit_after(Mock(side_effect=error))
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        exit_after(Mock(side_effect=AssertionError))


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
@pytest.mark.parametrize(
    "command", ["train --run {tmp}/run", "bench memory", "parity --out {tmp}", "plot schedules"]
)
def test_a_command_without_a_platform_ends_in_one_sentence(tmp_path, command, platform):
    environment = os.environ | {"JAX_PLATFORMS": platform}
    words = [sys.executable, "-m", "jax_ddpm", *command.format(tmp=tmp_path).split()]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: JAX_PLATFORMS is '{platform}'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("door", "command", "expected"),
    [
        ("/usr/bin/jax-ddpm", "sample", "jax-ddpm sample runs/a"),
        ("scripts/train.py", "sample", "python scripts/sample.py runs/a"),
        ("scripts/prepare_data.py", "prepare", "jax-ddpm prepare runs/a"),
        ("/site-packages/jax_ddpm/__main__.py", "sample", "python -m jax_ddpm sample runs/a"),
    ],
)
def test_the_next_command_is_suggested_in_the_form_of_this_one(
    monkeypatch, capsys, door, command, expected
):
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(sys, "argv", [door, "x"])
    suggest(command, Path("runs/a"))
    assert capsys.readouterr().out == f"Next: {expected}\n"


def test_another_system_is_refused_in_one_sentence(monkeypatch):
    windows = SimpleNamespace(name="nt")
    monkeypatch.setattr(jax_ddpm.cli, "os", windows)
    with pytest.raises(SystemExit, match=r"error: jax_ddpm works on Linux and macOS: .* use WSL"):
        jax_ddpm.cli.main("train")
    monkeypatch.setattr(jax_ddpm, "os", windows)
    monkeypatch.delitem(vars(jax_ddpm), "fit", raising=False)
    with pytest.raises(ImportError, match="jax_ddpm works on Linux and macOS"):
        _ = jax_ddpm.fit


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("", True),
        ("--help", True),
        ("nonsense", True),
        ("train --help-all", True),
        ("train --dry-run", True),
        ("bench step", True),
        ("train --run a", False),
        ("sample runs/a --out b.png", False),
    ],
)
def test_only_text_that_is_asked_for_is_the_job(command, expected):
    assert prints_only(command.split()) == expected
