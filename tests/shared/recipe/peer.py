"""PyTorch weights of the tiny network, under other names: the new file in jax_ddpm/interop."""

from jax_ddpm.interop.peer import Peer
from tests.shared.recipe.architecture import TinyConfig


def infer(shapes):
    width, channels, _, _ = shapes["first.weight"]
    return {"width": width, "channels": channels}


TINY_TORCH = Peer(
    make_config=TinyConfig,
    architecture=TinyConfig,
    arguments=("width", "channels"),
    infer=infer,
    names=[("first", "conv_in"), ("time_mlp.1", "time"), ("last", "conv_out")],
    preset="fashion-cpu",
)
