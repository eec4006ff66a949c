import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from jax.errors import JaxRuntimeError

from jax_ddpm.cli import parsing as cli
from jax_ddpm.config.presets import PRESETS
from jax_ddpm.errors import Stopped, UserError
from jax_ddpm.jobs.sample import SampleArgs


def parse(*args):
    return cli.parse_config(args, prog="train.py", description="Train.")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("form", ["{flag} {name}", "{flag}={name}"])
def test_a_preset_sets_every_value(name, form):
    assert parse(*form.format(flag="--preset", name=name).split()) == PRESETS[name]


def test_without_flags_the_small_preset_is_used():
    assert parse() == PRESETS["fashion-cpu"]


def test_flags_change_the_preset_wherever_they_stand():
    args = ["--seed", "3", "--preset", "ddpm-256", "--train.num-steps", "7", "--run", "a/b",
            "--model.channel-mult", "1", "2", "--data.name", "fashion_mnist"]  # fmt: skip
    preset = PRESETS["ddpm-256"]
    assert parse(*args) == replace(
        preset,
        seed=3,
        run=Path("a/b"),
        train=replace(preset.train, num_steps=7),
        model=replace(preset.model, channel_mult=(1, 2)),
        data=replace(preset.data, name="fashion_mnist"),
    )


def test_an_unknown_preset_is_refused_with_the_list_of_known_ones():
    with pytest.raises(
        UserError, match="no preset 'cifar', choose one of fashion-cpu, ddpm-cifar10"
    ):
        parse("--preset", "cifar")


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--train.batchsize", "--train.batch-size"),
        ("--train.num-step=5", "--train.num-steps"),
        ("--sed", "--seed"),
        ("--data.pth", "--data.path"),
    ],
)
def test_an_unknown_flag_is_refused_with_the_one_that_was_meant(flag, meant):
    with pytest.raises(UserError, match=f"unknown argument {flag}, did you mean {meant}?"):
        parse(flag, "5")


def test_a_flag_like_no_other_is_refused_without_a_guess():
    with pytest.raises(UserError, match=r"unknown argument --zzzzzz \(--help lists all\)"):
        parse("--zzzzzz")


def test_help_names_every_flag_and_preset(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for word in ("--train.num-steps", "--data.path", "--run", "--seed", *PRESETS):
        assert word in out


def test_the_sampling_flags_that_other_programs_rely_on_are_there():
    args = [
        "runs/a",
        "--num",
        "5",
        "--sampler",
        "ddim",
        "--steps",
        "7",
        "--seed",
        "3",
        "--out",
        "a.npz",
    ]
    found = cli.parse(SampleArgs, args, prog="sample.py", description="")
    expected = SampleArgs(Path("runs/a"), num=5, sampler="ddim", steps=7, seed=3, out=Path("a.npz"))
    assert found == expected


def test_sampling_flags_change_the_settings_of_the_run_and_others_stay():
    of_run = PRESETS["fashion-cpu"].sample
    assert SampleArgs(Path("a")).settings(of_run) == of_run
    args = SampleArgs(Path("a"), steps=9, sampler="ddpm", eta=0.5, clip_x_0=False)
    expected = replace(of_run, num_steps=9, sampler="ddpm", eta=0.5, clip_x_0=False)
    assert args.settings(of_run) == expected


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code"),
    [
        (lambda: None, 0),
        (raising(UserError("this is wrong")), "error: this is wrong"),
        (raising(FileNotFoundError(2, "No such file", "a/b")), "error: a/b: No such file"),
        (raising(Stopped(signal.SIGINT, "stopped")), 130),
        (raising(Stopped(signal.SIGTERM, "stopped")), 0),
        (raising(KeyboardInterrupt()), 130),
    ],
)
def test_how_a_command_ends_is_its_exit_code(main, code):
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == code


def test_late_threads_of_a_failed_read_are_not_heard_but_others_are(monkeypatch):
    heard = Mock()
    monkeypatch.setattr(sys, "unraisablehook", heard)
    late, other = (SimpleNamespace(exc_value=RuntimeError(text)) for text in
                   ("Event loop is closed", "another"))  # fmt: skip

    def main():
        sys.unraisablehook(late)
        sys.unraisablehook(other)

    with pytest.raises(SystemExit):
        cli.run(main)
    heard.assert_called_once_with(other)
    assert sys.unraisablehook is heard


def test_a_mistake_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(raising(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--trian.x", "3"], r"unknown argument --trian.x \(--help lists all\)"),
        (["--train.lr", "3"], r"unknown argument --train.lr \(--help lists all\)"),
        (["--num-steps", "3"], "did you mean --train.num-steps?"),
        (["--data.batch-size", "3"], "did you mean --train.batch-size?"),
        (["--data.random-flip", "maybe"], "'maybe' after --data.random-flip is not expected"),
        (["--preset", ""], "nothing after --preset: give a value"),
        (["--preset="], "nothing after --preset: give a value"),
        (["--run", ""], "nothing after --run: give a value"),
    ],
)
def test_a_mistyped_command_line_says_what_is_wrong_and_guesses_only_well(args, message):
    with pytest.raises(UserError, match=message):
        parse(*args)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_what_is_no_number_is_refused_in_every_command(value):
    with pytest.raises(UserError, match=r"--eta is -?(nan|inf), but it must be a finite number"):
        cli.parse(SampleArgs, ["runs/a", "--eta", value], prog="sample.py")


def test_too_little_memory_is_no_traceback():
    with pytest.raises(SystemExit, match="error: there is not enough memory"):
        cli.run(raising(MemoryError("7 TiB")))


def test_a_full_device_is_no_traceback_and_another_fault_of_it_is_one():
    with pytest.raises(SystemExit, match=r"error: the device has not enough memory: .*accumulate"):
        cli.run(raising(JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")))
    with pytest.raises(JaxRuntimeError, match="INTERNAL"):
        cli.run(raising(JaxRuntimeError("INTERNAL: no such luck")))
