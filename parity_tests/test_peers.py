"""The code that a checkpoint is compared with: a package, or our PyTorch twin."""

import json

import numpy as np
import pytest
import torch

from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, from_torch
from jax_ddpm.models import UNet2DConfig
from jax_ddpm.parity.peers import (
    PACKAGES,
    TWINS,
    choose_arguments,
    embed_as_diffusers,
    find_reference,
    monai_in_float64,
    openai_in_float64,
)
from jax_ddpm.parity.twins import make_twin_networks
from parity_tests.comparing import GOLDENS, load_weights


def test_every_source_has_a_network_to_compare_with():
    assert PACKAGES.keys() | TWINS.keys() == PEERS.keys()


def test_weights_go_into_the_twin(monkeypatch):
    """The network that a checkpoint is compared with holds its weights."""
    theirs, _, _ = make_twin_networks("float32")
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    network = from_torch(weights, "torch_ref", {"num_groups": 4})
    reference = find_reference(network)
    assert reference.against == "torch_ref.unet"
    for name, tensor in reference.module.state_dict().items():
        assert np.array_equal(tensor, weights[name])
    monkeypatch.delitem(TWINS, "torch_ref")
    with pytest.raises(UserError, match="there is no PyTorch network to compare torch_ref with"):
        find_reference(network)


def test_the_twin_stands_in_for_a_package_that_is_missing_or_does_not_fit(monkeypatch, capsys):
    network = load_recorded_network("lucidrains/unet_learned_variance", "lucidrains")
    twin = TWINS["lucidrains"]
    missing = PACKAGES["lucidrains"]._replace(module="no_such_package.unet")
    monkeypatch.setitem(PACKAGES, "lucidrains", missing)
    assert find_reference(network).against == "torch_ref.lucidrains"

    other = twin._replace(
        renamed={"dim": lambda config: 2 * config.dim}
    )  # like another version of the package
    monkeypatch.setitem(PACKAGES, "lucidrains", other)
    assert find_reference(network).against == "torch_ref.lucidrains"
    assert "note: torch_ref.lucidrains does not accept these" in capsys.readouterr().err
    monkeypatch.setitem(TWINS, "lucidrains", other)
    with pytest.raises(UserError, match="does not accept these weights"):
        find_reference(network)


def load_recorded_network(case, source):
    config = json.loads((GOLDENS / case / "manifest.json").read_text())["config"]
    config.pop("grad_rows")
    return from_torch(load_weights(GOLDENS / case), source, config)


@pytest.mark.parametrize("settings", [{}, {"flip_sin_to_cos": True, "downscale_freq_shift": 0}])
def test_the_embedding_of_diffusers_is_computed_in_float64(settings):
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0, 1, 13])
    single, double = (f(t, 9, **settings) for f in (get_timestep_embedding, embed_as_diffusers))
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    assert (double - single).abs().max() < 1e-6  # measured: 2.6e-7


class Norm(torch.nn.GroupNorm):
    """Like OpenAI's norm, it computes in float32 whatever its input."""

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


def timestep_embedding(t, dim):
    raise AssertionError("not replaced")


def test_the_casts_of_openai_become_casts_to_float64():
    x, layer = torch.randn(2, 4, 3, 3, dtype=torch.float64), Norm(2, 4).double()
    with openai_in_float64(layer):
        assert layer.dtype == torch.float64
        gap = (layer(x) - torch.nn.functional.group_norm(x, 2)).abs().max()
        assert gap < 1e-14  # measured: 4.4e-16; 1e-7 with the cast
        found = timestep_embedding(torch.tensor([3]), 4)
    expected = torch.tensor([[3, 0.03]], dtype=torch.float64)
    assert (found - torch.cat([expected.cos(), expected.sin()], 1)).abs().max() < 1e-15
    assert x.float().dtype == torch.float32 and not hasattr(layer, "dtype")


def get_timestep_embedding(t, dim):
    raise AssertionError("not replaced")


def test_the_embedding_of_monai_is_computed_in_float64():
    with monai_in_float64(Norm(2, 4)):
        found = get_timestep_embedding(torch.tensor([3]), 4)
    expected = torch.tensor([[3, 0.03]], dtype=torch.float64)
    assert (found - torch.cat([expected.cos(), expected.sin()], 1)).abs().max() < 1e-15


def test_arguments_are_ours_of_the_same_name_or_the_peers_own():
    class DiffusionModelUNet:
        def __init__(self, spatial_dims, in_channels, channels, attention_levels, norm_eps):
            """A part of MONAI's arguments: two of our settings, three of its own."""

    config = UNet2DConfig(in_channels=3, block_out_channels=(32, 64), norm_eps=1e-6)
    found = choose_arguments(DiffusionModelUNet, PACKAGES["monai"], config, PEERS["monai"])
    assert found.pop("attention_levels") is not None
    assert {**found, "channels": list(found["channels"])} == {
        "spatial_dims": 2,
        "in_channels": 3,
        "channels": [32, 64],
        "norm_eps": 1e-6,
    }
