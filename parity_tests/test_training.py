"""Twenty training steps side by side: jax_ddpm against torch_ref."""

import pytest

from jax_ddpm.parity.training import SETTINGS, pair_training
from parity_tests.comparing import DOUBLE_FIRST

THEIRS = "torch_ref"


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as in the paper"),
        pytest.param(
            {"warmup_steps": 0, "max_grad_norm": None, "ema_decay": 0.999, "ema_warmup": True},
            id="ema warm-up, no clipping",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_twenty_steps(compare, dtype, changes):
    for pair in pair_training(dtype, 0, 20, SETTINGS | changes):
        compare(pair.tolerance, pair.ours, pair.theirs, dtype, pair.peak)
