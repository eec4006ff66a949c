"""The examples in the docstrings of public names run, and print what they say."""

import pytest

import jax_ddpm as jd
from tests.shared.docstrings import run_examples

# Those of fit and load_run are tested where their run folders are made.
EXAMPLES = [
    name
    for name in jd.__all__
    if ">>>" in (getattr(jd, name).__doc__ or "") and name not in ("fit", "load_run")
]

QUICK = ("named_schedule", "timestep_grid", "diffusion_loss", "sample")
RUNS = [pytest.param(name, marks=() if name in QUICK else (pytest.mark.slow,)) for name in EXAMPLES]


def test_the_names_that_people_use_first_have_an_example():
    assert len(EXAMPLES) >= 30


@pytest.mark.parametrize("name", RUNS)
def test_the_example_runs(name):
    run_examples(getattr(jd, name))
