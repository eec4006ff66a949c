"""Every table of every schedule: jax_ddpm against torch_ref."""

from dataclasses import fields

import pytest
import torch

from jax_ddpm.parity.process import REF_BETAS
from jax_ddpm.process.schedules import BETAS, make_schedule
from torch_ref import schedule as ref

THEIRS = "torch_ref"


def test_every_schedule_has_a_reference():
    assert REF_BETAS.keys() == BETAS.keys()


@pytest.mark.parametrize("clipped_log_variance", ["second_entry", "floor"])
@pytest.mark.parametrize("num_timesteps", [50, 1000])
@pytest.mark.parametrize("name", BETAS)
def test_tables(compare, dtype, name, num_timesteps, clipped_log_variance):
    ours = make_schedule(
        BETAS[name](num_timesteps), dtype=dtype, clipped_log_variance=clipped_log_variance
    )
    theirs = ref.make_schedule(
        REF_BETAS[name](num_timesteps), getattr(torch, dtype), clipped_log_variance
    )
    for table in fields(theirs):
        expected = getattr(theirs, table.name).numpy()
        compare("schedule tables", getattr(ours, table.name), expected, dtype)


def test_tables_have_the_same_names():
    ours = make_schedule(BETAS["linear"](10))
    assert {f.name for f in fields(ours)} == {f.name for f in fields(ref.Schedule)}
