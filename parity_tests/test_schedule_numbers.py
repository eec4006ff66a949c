"""Schedules between other betas, or with another offset, are the reference's."""

from functools import partial

import numpy as np
import pytest

from jax_ddpm.process.schedules import named_betas
from torch_ref import schedule as ref

ENDS = {"start": 0.001, "end": 0.05}
REFERENCES = {
    "linear": partial(ref.linear_betas, **ENDS),
    "linear_rescaled": partial(ref.linear_betas, rescale=True, **ENDS),
    "quadratic": partial(ref.quadratic_betas, **ENDS),
    "sigmoid": partial(ref.sigmoid_betas, **ENDS),
    "cosine": partial(ref.cosine_betas, s=0.05),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("num_timesteps", [200, 1000])
def test_betas_are_the_references(name, num_timesteps):
    """Measured: equal; the tolerance is for other versions of the cosine and exponential."""
    numbers = {"cosine_s": 0.05} if name == "cosine" else {"beta_start": 0.001, "beta_end": 0.05}
    ours = named_betas(name, num_timesteps, **numbers)
    np.testing.assert_allclose(ours, REFERENCES[name](num_timesteps), rtol=1e-12, atol=1e-14)
