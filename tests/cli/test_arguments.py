"""Reading a command line: what each spelling means, and one sentence for every mistake."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import tyro

from jax_ddpm.cli import arguments, report
from jax_ddpm.cli.arguments import read_arguments
from jax_ddpm.cli.flags import Flat, read_flags
from jax_ddpm.cli.help import Help
from jax_ddpm.cli.parsing import choose, parse
from jax_ddpm.errors import UserError

HELP = Help("command RUN", "Do it.", (("command RUN", "does it"),), ("--num",))


@dataclass(frozen=True)
class Train:
    num_steps: int = 10
    """How many steps."""
    rate: float = 0.5
    betas: tuple[float, float] = (0.9, 0.99)
    decays: tuple[float, ...] = ()
    norm: float | None = 1.0
    keep: bool = False
    """Keep everything that is written."""
    heads: int | tuple[int, ...] = 4


@dataclass(frozen=True)
class Sample:
    num_steps: int = 5
    clip: bool = True
    sampler: Literal["ddpm", "ddim"] = "ddpm"
    interval: tuple[int, int] | None = None
    prediction_type: Literal["eps", "x_0"] = "eps"


@dataclass(frozen=True)
class Flags:
    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    num: int = 4
    """Number of images."""
    rescale: bool | None = None
    train: Train = field(default_factory=Train)
    sample: Flat[Sample] = field(default_factory=Sample)


@dataclass(frozen=True)
class Sections:
    train: Train = field(default_factory=Train)
    sample: Sample = field(default_factory=Sample)
    name: str = "x"


SHORT = {"--steps": ("--train.num-steps",), "--fast": ("--train.rate", "0.9"), "--old": ()}


def read(*args):
    return parse(Flags, ["a/b", *args], HELP, short=SHORT)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("--num 7", Flags(Path("a/b"), num=7)),
        ("--num=7", Flags(Path("a/b"), num=7)),
        ("--train.num-steps 7 --num-steps 8", Flags(Path("a/b"), train=Train(7), sample=Sample(8))),
        ("--train.num_steps 7", Flags(Path("a/b"), train=Train(7))),
        ("--steps=7", Flags(Path("a/b"), train=Train(7))),
        ("--fast --old", Flags(Path("a/b"), train=Train(rate=0.9))),
        ("--rate -1.5", Flags(Path("a/b"), train=Train(rate=-1.5))),
        (
            "--betas 0.1 0.2 --decays 0.3 0.4 0.5 --norm None",
            Flags(Path("a/b"), train=Train(betas=(0.1, 0.2), decays=(0.3, 0.4, 0.5), norm=None)),
        ),
        ("--heads 2", Flags(Path("a/b"), train=Train(heads=2))),
        ("--heads 2 3 4 --num 4", Flags(Path("a/b"), train=Train(heads=(2, 3, 4)))),
        ("--betas=0.1 0.2", Flags(Path("a/b"), train=Train(betas=(0.1, 0.2)))),
        (
            "--interval 3 4 --sampler ddim",
            Flags(Path("a/b"), sample=Sample(interval=(3, 4), sampler="ddim")),
        ),
        ("--interval None", Flags(Path("a/b"))),
        ("--keep --no-clip", Flags(Path("a/b"), train=Train(keep=True), sample=Sample(clip=False))),
        ("--train.no-keep", Flags(Path("a/b"))),
        ("--no-train.keep", Flags(Path("a/b"))),
        ("--rescale", Flags(Path("a/b"), rescale=True)),
        ("--no-rescale", Flags(Path("a/b"), rescale=False)),
        ("--prediction-type sample", Flags(Path("a/b"), sample=Sample(prediction_type="x_0"))),
    ],
)
def test_a_command_line_is_read(args, expected):
    assert read(*args.split()).flags == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--nmu 7", r"unknown flag --nmu: did you mean --num\? \(--help-all"),
        ("--zzzz 7", r"unknown flag --zzzz \(--help-all lists every flag\)"),
        ("--train.nm-steps 7", r"unknown flag --train.nm-steps: did you mean --train.num-steps"),
        ("--data.norm 7", r"unknown flag --data.norm: did you mean --train.norm\?"),
        ("--trian.num-steps 7", r"did you mean --train.num-steps\?"),  # not --num-steps
        ("--num", "--num needs a value: a whole number"),
        ("--num --keep", "--num needs a value: a whole number"),
        ("--num many", "--num is 'many', but it must be a whole number"),
        ("--num 1.5", "--num is '1.5', but it must be a whole number"),
        ("--heads x", "--heads is 'x', but it must be a whole number"),
        ("--heads", "--heads needs a value: a whole number"),
        ("--num 7 8", "'8' after 7 is not expected here"),
        ("--num 99999999999", "--num is 99999999999, but it must be at most"),
        ("--rate much", "--rate is 'much', but it must be a number"),
        ("--rate nan", "--rate is nan, but it must be a finite number"),
        ("--rate 1e999", "--rate is inf, but it must be a finite number"),
        ("--rate -inf", "--rate is -inf, but it must be a finite number"),
        ("-x", r"unknown flag -x \(--help-all"),
        ("--betas 0.1", "--betas needs 2 values, each: a number"),
        ("--betas 0.1 --num 3", "--betas needs 2 values, each: a number"),
        ("--interval 3 x", "--interval is 'x', but it must be a whole number"),
        ("--sampler dimm", "--sampler is 'dimm', but it must be ddpm or ddim: did you mean 'ddim'"),
        ("--prediction-type epsilom", "--prediction-type is 'epsilom', .*: did you mean 'epsilon'"),
        ("--keep False", "--keep takes no value: write --train.keep or --train.no-keep"),
        ("--keep=yes", "--keep takes no value: write --train.keep or --train.no-keep"),
        ("--keep maybe", "'maybe' after --keep is not expected here"),
        ("--no-num 3", "unknown flag --no-num"),
        ("--num=", "there is nothing after --num: give a value"),
        ("b", "'b' after a/b is not expected here"),
    ],
)
def test_every_mistake_gets_one_sentence(args, message):
    with pytest.raises(UserError, match=message) as caught:
        read(*args.split())
    assert "\n" not in str(caught.value)


def test_an_empty_and_a_missing_argument_get_one_sentence():
    with pytest.raises(UserError, match="there is nothing after --num: give a value"):
        read("--num", "")
    with pytest.raises(UserError, match=r"RUN is missing: folder of the run \(see --help\)"):
        parse(Flags, ["--num", "3"], HELP)


def test_an_ambiguous_short_flag_is_refused_with_the_flags_it_could_be():
    message = "--num-steps could be --train.num-steps or --sample.num-steps: write one of them"
    with pytest.raises(UserError, match=message):
        parse(Sections, ["--num-steps", "3"], HELP)
    assert parse(Sections, ["--clip"], HELP).flags == Sections()
    assert parse(Sections, ["--no-clip"], HELP).flags == Sections(sample=Sample(clip=False))


def test_sentences_name_flags_as_the_user_typed_them():
    parsed = read("--steps", "3", "--keep", "--rate", "1")
    with (
        pytest.raises(
            UserError, match=r"^--steps, --keep, --rate and --train.rates, --a.train.keep"
        ),
        parsed.naming_flags_as_typed(),
    ):
        raise UserError(
            "--train.num-steps, --train.keep, --train.rate and --train.rates, --a.train.keep"
        )


def test_only_given_flags_are_changes():
    parsed = read("--num", "3", "--no-clip", "--sampler", "ddpm")
    assert parsed.changes("sample") == {"clip": False, "sampler": "ddpm"}
    assert parsed.changes("train", "--train.") == {}


def test_an_error_of_tyro_is_one_sentence_too(monkeypatch):
    """A value that slips through our own checks still gives one sentence."""
    monkeypatch.setattr(arguments, "check_values", lambda flag, typed, values: values)
    with pytest.raises(UserError, match=r"the command line cannot be read: .*many"):
        read("--num", "many")


def test_the_word_after_a_command_must_be_one_of_its_kinds():
    assert choose("jax-ddpm plot", ["forward", "--x"], ["schedules", "forward"], HELP) == "forward"
    with pytest.raises(
        UserError, match="plot takes schedules or forward, not 'foward': did you mean forward"
    ):
        choose("jax-ddpm plot", ["foward"], ["schedules", "forward"], HELP)
    with pytest.raises(UserError, match=r"plot needs a word after it: schedules or forward"):
        choose("jax-ddpm plot", [], ["schedules", "forward"], HELP)


def test_defaults_come_from_the_instance():
    flags = {flag.name: flag for flag in read_flags(Flags, Flags(tyro.MISSING, train=Train(99)))}
    assert flags["--train.num-steps"].default == 99
    assert flags["RUN"].is_required and flags["RUN"].is_positional
    assert flags["--clip"].is_switch and flags["--rescale"].is_switch
    assert flags["--train.keep"].help == "Keep everything that is written."
    assert read_arguments(["x"], list(flags.values()), {}).words == ["x"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--num 3 --num 4", "--num is given twice, first 3 and then 4: give it once"),
        ("--num=3 --num=3", "--num is given twice"),
        ("--steps 3 --train.num-steps 4", "--steps is given twice, first 3 and then 4"),
        ("--train.keep --train.no-keep", "twice, first --train.keep and then --train.no-keep"),
        ("--betas 0.9 0.99 --betas 0.5 0.9", "twice, first 0.9 0.99 and then 0.5 0.9"),
        ("--heads 4 --heads 8", "--heads is given twice"),
    ],
)
def test_a_flag_that_is_given_twice_is_refused(args, message):
    with pytest.raises(UserError, match=message):
        read_arguments(["RUN", *args.split()], list(read_flags(Flags)), SHORT)


def test_a_list_that_is_given_twice_grows():
    flags = list(read_flags(Flags))
    words = read_arguments(
        ["RUN", "--decays", "0.5", "--num", "2", "--decays", "0.9"], flags, SHORT
    ).words
    assert words == ["RUN", "--train.decays", "0.5", "0.9", "--num", "2"]


def test_the_value_of_a_flag_is_not_another_flag():
    assert arguments.find_value("--preset", ["--preset", "--run", "X"]) is None
    assert arguments.find_value("--run", ["--preset", "--run", "X"]) == "X"
    assert arguments.find_value("--preset", ["--preset=a", "--run", "X"]) == "a"


def test_a_list_of_places_takes_every_word_and_at_least_one():
    flags = report.read(["runs/a", "--out", "page.html", "runs/b"]).flags
    assert (flags.runs, flags.out) == ((Path("runs/a"), Path("runs/b")), Path("page.html"))
    with pytest.raises(UserError, match="RUNS is missing"):
        report.read(["--out", "page.html"])
