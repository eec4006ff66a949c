"""Sentences for the user, and the check of names."""

from pathlib import Path

import pytest

from jax_ddpm.errors import UserError, check_choice, join_or, nearest, require_suffix

CHOICES, ALIASES = ("eps", "x_0", "v"), {"epsilon": "eps"}


def test_a_choice_stays_and_an_alias_becomes_its_choice():
    assert check_choice("prediction_type", "v", CHOICES, ALIASES) == "v"
    assert check_choice("prediction_type", "epsilon", CHOICES, ALIASES) == "eps"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("epsilo", "name is 'epsilo', but it must be eps, x_0 or v: did you mean 'epsilon'?"),
        ("X0", "name is 'X0', but it must be eps, x_0 or v: did you mean 'x_0'?"),
        (3, "name is 3, but it must be eps, x_0 or v"),
        (None, "name is None, but it must be eps, x_0 or v"),
    ],
)
def test_any_other_name_is_refused_with_the_nearest_choice(given, sentence):
    with pytest.raises(UserError) as error:
        check_choice("name", given, CHOICES, ALIASES)
    assert str(error.value) == sentence


def test_the_nearest_name_ignores_case_and_delimiters():
    assert nearest("FixedSmall", ["fixed_small", "fixed_large"]) == "fixed_small"
    assert nearest("minsnr", ["constant", "min_snr", "soft_min_snr"]) == "min_snr"
    assert nearest("zzz", ["constant"]) is None


def test_names_are_joined_as_in_a_sentence():
    assert [join_or(list("abc")[:n]) for n in (1, 2, 3)] == ["a", "a or b", "a, b or c"]


def test_a_file_must_have_its_suffix_in_any_case():
    require_suffix(Path("a.PNG"), ".png")
    with pytest.raises(
        UserError, match=r"^--out is a.jpg, but it must be a file that ends in \.png"
    ):
        require_suffix(Path("a.jpg"), ".png")
