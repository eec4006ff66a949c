"""Classes by name and number."""

from dataclasses import replace
from pathlib import Path

import pytest

from jax_ddpm.config.run import Config
from jax_ddpm.data.identity import Identity
from jax_ddpm.data.summary import DataSummary
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.labels import describe_drawn, find_labels, list_class_names
from jax_ddpm.models import UNetConfig
from jax_ddpm.runs.folder import Run

NAMES = ("1", "10", "2", "cat")


def make_run(names=NAMES, counts=(5, 5, 5, 5), num_labels=5):
    summary = DataSummary(20, (8, 8, 1), 0, 255, 20, names, counts)
    config = Config(model=UNetConfig(num_classes=num_labels))
    return Run(Path("runs/x"), config, (8, 8, 1), images=Identity(summary, 0, 0, 20))


def test_a_class_is_found_by_name_before_number():
    """The folder 10 sorts before the folder 2, so its number is not its name."""
    assert find_labels(["2"], make_run()) == (2,)
    assert find_labels(["10", "cat", "3"], make_run()) == (1, 3, 3)
    assert find_labels(["1"], make_run()) == (0,)
    assert find_labels([1], make_run()) == (1,)  # from Python, a number is a number
    assert find_labels([], make_run()) == ()


@pytest.mark.parametrize(
    ("given", "run", "message"),
    [
        ("cta", make_run(), "--label is 'cta', .*did you mean 'cat'"),
        ("5", make_run(), "--label is 5, but it must be between 0 and 4"),
        ("-1", make_run(), "--label is -1, but it must be between 0 and 4"),
        ("4", make_run(), "--label 4: the data had no image of class 4"),
        ("cat", make_run(counts=(5, 5, 5, 0)), r"no image of class cat \(number 3\)"),
        ("cat", make_run(names=()), "names of this run's classes are not known"),
        ("cat", make_run(num_labels=None), "--label cat: this run was trained without labels"),
        ("cat", replace(make_run(), images=None), "give a number from 0 to 4"),
    ],
)
def test_a_class_that_cannot_be_drawn_is_refused(given, run, message):
    with pytest.raises(UserError, match=message):
        find_labels([given], run)


def test_what_is_drawn_is_said():
    assert describe_drawn((2, 3), make_run()) == ", of class 2 (number 2), cat (number 3)"
    assert "no images of class 4: choose with --label" in describe_drawn((), make_run())
    assert describe_drawn((), make_run(num_labels=4)) == ""
    assert describe_drawn((), make_run(num_labels=None)) == ""
    assert list_class_names(make_run(num_labels=None)) == ()
