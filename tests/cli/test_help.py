"""Help is short by default, complete on request, and comes from the docstrings alone."""

import re

import pytest

from jax_ddpm.cli import bench, convert, evaluate, parity, plot, prepare, report, sample, train
from jax_ddpm.cli.commands import COMMANDS, format_overview, run_command
from jax_ddpm.cli.flags import read_flags
from jax_ddpm.config.presets import PRESETS

PAGES = {
    "train": (train.run, []),
    "sample": (sample.run, []),
    "evaluate": (evaluate.run, []),
    "evaluate --likelihood": (evaluate.run, ["--likelihood"]),
    "convert": (convert.run, []),
    "convert to": (convert.run, ["--to", "torch"]),
    "plot": (plot.run, []),
    "plot schedules": (plot.run, ["schedules"]),
    "plot forward": (plot.run, ["forward"]),
    "plot samplers": (plot.run, ["samplers"]),
    "report": (report.run, []),
    "parity": (parity.run, []),
    "prepare": (prepare.run, []),
    "prepare emoji": (prepare.run, ["emoji"]),
    "bench": (bench.run, []),
    "bench step": (bench.run, ["step"]),
    "bench memory": (bench.run, ["memory"]),
}


def print_help(run, args, capsys):
    with pytest.raises(SystemExit) as caught:
        run(args)
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("ask", ["-h", "--help"])
@pytest.mark.parametrize("page", PAGES)
def test_every_help_begins_with_examples_and_fits_on_a_screen(page, ask, capsys):
    run, args = PAGES[page]
    lines = print_help(run, [*args, ask], capsys).splitlines()
    assert lines[0].startswith(f"usage: jax-ddpm {page.split()[0]}")
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 98
    examples = lines[lines.index("examples:") + 1 :]
    assert [line.startswith("  jax-ddpm ") for line in examples[0:6:2]] == [True] * 3


def test_the_help_of_training_shows_ten_flags_with_the_defaults_of_the_preset(capsys):
    out = print_help(train.run, ["--preset", "ddpm-cifar10", "--help"], capsys)
    assert len(re.findall(r"^  --", out, re.MULTILINE)) == 10
    assert "--steps N, --train.num-steps N\n        Training steps. (default: 800000)" in out
    assert "--help-all lists all" in out
    assert all(name in out for name in PRESETS)


@pytest.mark.parametrize("command", [train, sample, evaluate])
def test_the_whole_help_shows_every_flag_with_its_docstring(command, capsys):
    out = print_help(command.run, ["--help-all"], capsys)
    kind = {train: train.TrainFlags, sample: sample.SampleFlags, evaluate: evaluate.EvaluateFlags}
    flags = list(read_flags(kind[command]))
    assert len(flags) > 15
    for flag in flags:
        assert re.search(rf"(^|  |, ){re.escape(flag.name)}( |,|$)", out, re.MULTILINE), flag.name
        assert flag.help, f"{flag.name} has no docstring"
        assert " ".join(flag.help.split()[:4]) in " ".join(out.split())


def test_the_help_of_sampling_shows_the_settings_of_the_run(trained_run, capsys):
    out = print_help(sample.run, [str(trained_run), "--help"], capsys)
    assert re.search(r"--steps N, --num-steps N\n[^(]*\(default: 4\)", out)
    out = print_help(sample.run, ["--help"], capsys)
    assert re.search(r"--steps N, --num-steps N\n[^(]*\(default:\s+the\s+run's\)", out)


def run_main(*args, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(args)
    return caught.value.code, capsys.readouterr().out


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_command_one_screen_lists_all_commands(args, capsys):
    code, out = run_main(*args, capsys=capsys)
    assert (code, out) == (0, f"{format_overview()}\n")
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert len(out.splitlines()) <= 24


def test_the_version_is_printed(capsys):
    assert re.fullmatch(r"jax_ddpm \d+\.\d+\S*\n", run_main("--version", capsys=capsys)[1])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trian", "error: 'trian' is not a command: did you mean train?"),
        ("frobnicate", "error: 'frobnicate' is not a command (jax-ddpm --help"),
        ("--preset", "error: the command is missing before --preset: jax-ddpm train | sample"),
    ],
)
def test_a_wrong_command_gets_one_sentence(word, message, capsys):
    code, _ = run_main(word, capsys=capsys)
    assert message in code
    assert "\n" not in code


def test_every_command_is_a_module():
    for name in COMMANDS:
        assert callable(__import__(f"jax_ddpm.cli.{name}", fromlist=["run"]).run)
