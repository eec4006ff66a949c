"""Random networks of every architecture leave and come back as they were: settings and tensors."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jax_ddpm.interop import from_torch
from jax_ddpm.interop.recognise import recognise
from jax_ddpm.interop.source import Source
from jax_ddpm.jobs.translate import fill_channels, translate
from jax_ddpm.models import UNet2DConfig
from tests.shared.networks import NETWORKS, OLDER, make_run

# Each example traces networks for seconds: there are few, and they are not made simpler.
FEW = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=HealthCheck,
    phases=[Phase.generate],
)


def complete(filled, back, side):
    """The settings that the names of `back`'s implementation add to those of a run."""
    if isinstance(filled, UNet2DConfig) and back.sample_size is not None:
        return replace(filled, sample_size=side)
    if hasattr(filled, "init_dim"):  # None stands for what the shapes reveal
        return replace(filled, init_dim=back.init_dim)
    return filled


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NETWORKS, *OLDER])
def test_out_and_in_again_is_the_identity(name):
    source = name.partition(" ")[0]

    @FEW
    @given((NETWORKS | OLDER)[name], st.integers(0, 1000))
    def check(config, seed):
        run, _, params = make_run(source, config, 1.0, seed)
        found = translate(run, params, source)
        arguments = json.loads(json.dumps(found.arguments))
        back = from_torch(found.state_dict, source, arguments)
        assert back.config == complete(fill_channels(run), back.config, run.image_shape[0])
        assert jax.tree.structure(back.params) == jax.tree.structure(params)
        for ours, theirs in zip(*map(jax.tree.leaves, (params, back.params)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert source in recognise(Source(None, found.state_dict, {"c": arguments}, "c"))

    check()
