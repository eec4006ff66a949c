"""Sampler steps and whole chains with the same noise: jax_ddpm against torch_ref."""

import pytest

from jax_ddpm.parity.sampling import CHAINS, JUMPS, SAMPLERS, Chain, run_chain, take_one_step
from parity_tests.comparing import DOUBLE_FIRST

THEIRS = "torch_ref"
SLOW = Chain("chain of 1000 ancestral steps", "ddpm fixed_small", 1000, "cosine", "v")


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step(compare, dtype, sampler, schedule, jump):
    compare("one sampler step", *take_one_step(dtype, schedule, sampler, jump), dtype)


FIRST = pytest.param(CHAINS[0], marks=[pytest.mark.slow, pytest.mark.guard])


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize(
    "chain",
    [FIRST, *(pytest.param(chain, marks=pytest.mark.slow) for chain in [*CHAINS[1:], SLOW])],
)
def test_whole_chain_through_the_same_network(compare, dtype, chain):
    compare(chain.tolerance, *run_chain(dtype, chain, 0), dtype)
