"""Recorded numbers of guided_diffusion's importance sampling of timesteps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.process.timesteps import empty_history, importance, inverse_cdf, record
from parity_tests.comparing import read_golden

THEIRS = "OpenAI (recorded)"


@pytest.mark.parametrize("whole", [True, False])
def test_history_and_weights(compare, whole):
    """Their updates in two parts: until every timestep has its losses, and the rest.

    Each part comes as one batch, or loss by loss as in the recording.
    """
    manifest, io = read_golden("guided_diffusion/likelihood_embedding_resampler")
    settings = manifest["config"]
    t, losses = jnp.asarray(io["in.hist_t"]), jnp.asarray(io["in.hist_loss"], "float64")
    history, add = empty_history(settings["T"], settings["hist"], "float64"), jax.jit(record)
    for part, name in (
        (np.arange(settings["cut"]), "before_warmup"),
        (np.arange(settings["cut"], len(t)), "after"),
    ):
        for rows in [part] if whole else part[:, None]:
            history = add(history, t[rows], losses[rows])
        p = importance(history, settings["up"])
        theirs = io[f"f64.weights_{name}"]
        compare("importance of timesteps", p, theirs / theirs.sum(), "float64")
    np.testing.assert_array_equal(history.counts, io["both.loss_counts"])
    np.testing.assert_array_equal(history.losses, io["f64.loss_history"])


def test_drawn_timesteps_and_their_weights(compare):
    """They map one uniform number each, from NumPy's generator, through the inverse of the cdf."""
    _, io = read_golden("guided_diffusion/likelihood_embedding_resampler")
    p = io["f64.weights_after"] / io["f64.weights_after"].sum()
    u = np.random.RandomState(7).random_sample(16)
    t = inverse_cdf(jnp.asarray(u), jnp.asarray(p))
    np.testing.assert_array_equal(t, io["both.sample_t_npseed7"])
    compare("importance of timesteps", 1 / (len(p) * p[t]), io["f64.sample_weights"], "float64")
