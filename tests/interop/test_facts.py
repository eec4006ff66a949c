import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.interop.facts import ASSUMED, Fact, describe_betas, merge, show_value
from jax_ddpm.process.schedules import BETAS, linear_betas, rescale_zero_terminal_snr


def find(facts):
    return {fact.what.removeprefix("diffusion."): fact.value for fact in facts}


def test_betas_are_called_by_the_name_of_their_schedule():
    for name, make_betas in BETAS.items():
        facts = find(describe_betas(make_betas(300).astype(np.float32).astype(float), "here"))
        assert facts == {"schedule": name, "num_timesteps": 300, "zero_terminal_snr": False}
    rescaled = rescale_zero_terminal_snr(BETAS["sigmoid"](300)).astype(np.float32)
    facts = find(describe_betas(rescaled.astype(float), "here"))
    assert (facts["schedule"], facts["zero_terminal_snr"]) == ("sigmoid", True)


def test_betas_without_a_name_are_taken_as_they_are():
    betas = linear_betas(30, start=0.001, end=0.03)
    facts = find(describe_betas(betas, "here"))
    assert facts["betas"] == tuple(betas)
    assert "schedule" not in facts
    rescaled = rescale_zero_terminal_snr(betas)
    assert find(describe_betas(rescaled, "here"))["zero_terminal_snr"]


@pytest.mark.parametrize(
    ("betas", "sentence"),
    [
        (np.array([0.5, 0.1, 1.9]), "run from 0.1 to 1.9"),
        (np.array([0.5, 0.0, 0.9]), "each must lie between 0 and 1"),
        (np.ones((2, 2)), "one per timestep"),
        (np.full(10_001, 0.1), "a run can hold at most 10,000"),
    ],
)
def test_impossible_betas_are_refused(betas, sentence):
    with pytest.raises(UserError, match=sentence):
        describe_betas(betas, "here")


def test_facts_that_contradict_each_other_are_refused_with_both_origins():
    one, two = Fact("a.b", 1, "x.json"), Fact("a.b", 2, "y.json")
    assert merge([one, one]) == {"a.b": one}
    assert merge([Fact("a.b", 3, ASSUMED), one, Fact("a.b", 3, ASSUMED)]) == {"a.b": one}
    with pytest.raises(UserError, match=r"x.json says that a.b is 1, but y.json says 2"):
        merge([one, two])


def test_sizes_and_lists_are_shown_as_such():
    assert show_value((8, 24)) == "8x24"
    assert show_value((0.1, 0.05)) == "0.1, 0.05"
    assert show_value((0.1, 0.2, 0.3, 0.4, 0.5)) == "5 numbers from 0.1 to 0.5"
