"""The examples in the docstrings of the functions that a user calls first."""

import pytest

from jax_ddpm.process.grids import timestep_grid
from jax_ddpm.process.losses import diffusion_loss
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.samplers import sample
from tests.shared.docstrings import run_examples


@pytest.mark.parametrize("function", [named_schedule, timestep_grid, diffusion_loss, sample])
def test_examples_run(function):
    run_examples(function)
