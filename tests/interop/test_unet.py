"""Ho et al.'s U-Net goes to its original and its port with their arguments, and comes back."""

import json

import jax
import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, from_torch, to_state_dict
from jax_ddpm.interop.ho_as_unet2d import to_unet2d
from jax_ddpm.models import UNetConfig, parameter_shapes

WITHOUT = UNetConfig(
    32, (1, 2), 1, (1,), 0.1, in_channels=1, out_channels=1, resamp_with_conv=False
)


@pytest.mark.parametrize("source", ["ho", "pesser", "torch_ref"])
def test_the_network_and_its_arguments_go_both_ways(source):
    peer, shapes = PEERS[source], parameter_shapes(WITHOUT)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    arguments = peer.list_arguments(peer.express(WITHOUT, (8, 8, 1)), (8, 8, 1))
    arguments = json.loads(json.dumps(arguments))
    assert arguments["resamp_with_conv"] is False
    assert from_torch(to_state_dict(params, peer), source, arguments).config == WITHOUT


def test_the_port_takes_square_images_only():
    with pytest.raises(UserError, match="square images only, but the run's are 8x16"):
        PEERS["pesser"].list_arguments(WITHOUT, (8, 16, 1))


def test_a_network_without_convolutions_between_resolutions_is_no_unet2dmodel():
    with pytest.raises(UserError, match="without a convolution"):
        to_unet2d(WITHOUT, (8, 8, 1))
