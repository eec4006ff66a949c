"""A table of the layers of a network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.summary import tabulate

from jax_ddpm.models.architecture import Architecture, ImageShape
from jax_ddpm.models.network import make_module

WIDTH = 100  # characters


def summarize(
    network: Architecture | nn.Module, image_shape: ImageShape, *, depth: int | None = 1
) -> str:
    """A table of a network's modules, with what goes in and out, and their numbers of parameters.

    `network` is a configuration or a Linen module, as in `make_network`, and `image_shape` is
    (h, w, c). `depth` 1 lists the largest parts, 2 what they consist of, None everything. Nothing
    is computed. The table is Flax's `nn.tabulate`.

    Examples:
        >>> import jax_ddpm as jd
        >>> config = jd.UNetConfig(channels=8, channel_mult=(1, 2), num_groups=4)
        >>> table = jd.summarize(config, (8, 8, 1))  # print it
        >>> "conv_in" in table and "float32[1,8,8,1]" in table
        True
    """
    module = make_module(network, image_shape)
    console = {"width": WIDTH, "force_terminal": False, "force_jupyter": False, "no_color": True}
    table = tabulate(module, jax.random.key(0), depth=depth, console_kwargs=console)
    lines = table(jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)).splitlines()
    return "\n".join(line.rstrip() for line in lines)
