"""The algebra of the forward process and the losses: jax_ddpm against torch_ref."""

from functools import cache

import pytest

from jax_ddpm.parity.process import pair_forward_process, pair_losses

THEIRS = "torch_ref"


@cache
def compute_quantities(dtype):
    return [*pair_forward_process(dtype, 0), *pair_losses(dtype, 0)]


@pytest.fixture
def check(compare, dtype):
    """check(what, count): compare the `count` quantities that have the tolerance of `what`."""

    def check_all(what, count):
        pairs = [pair for pair in compute_quantities(dtype) if pair.tolerance == what]
        assert len(pairs) == count
        for pair in pairs:
            compare(what, pair.ours, pair.theirs, dtype)

    return check_all


def test_q_sample(check):
    check("q_sample", 1)


def test_q_step(check):
    check("one-step q", 1)


def test_q_posterior(check):
    check("q_posterior", 3)


def test_conversions(check):
    check("eps, x_0 and v conversions", 5)


def test_predictions_of_a_network(check):
    """Three prediction types, with and without clipping."""
    check("predicted x_0 and eps", 6)


def test_losses(check):
    """Three prediction types with three losses each."""
    check("losses", 9)
