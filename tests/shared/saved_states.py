"""Small train states to save, and a comparison of two."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_ddpm.optim.optimizers import make_optimizer
from jax_ddpm.training.state import create_state

ABOUT = {"format": 1, "config": {"seed": 0}}


def make_state(step, width=3, names=("a", "b")):
    """A state after `step` steps, with different random numbers for each step."""
    numbers = np.random.default_rng(step)
    params = {
        name: {"kernel": jnp.asarray(numbers.normal(size=(2, width)), jnp.float32)}
        for name in names
    }
    return create_state(params, make_optimizer(0.1)).replace(step=jnp.array(step, jnp.int32))


def assert_same_bits(found, expected):
    """Compare structure, dtypes and every bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
