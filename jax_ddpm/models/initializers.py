"""How parameters start: as in PyTorch, as in the code of Ho et al. 2020, or at zero."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

Initializer = Callable[..., Array]


class Start(NamedTuple):
    """The initialisers of a layer."""

    kernel: Initializer
    bias: Initializer


Init = Callable[[int], Start]  # of a layer's fan-in, the number of its inputs per output

# Ho et al. 2020 give layers whose output should start at zero a tiny scale instead.
ZERO_SCALE = 1e-10


def torch_uniform(fan_in: int) -> Start:
    """Kernels and biases uniform within 1/sqrt(fan_in), PyTorch's default."""
    bound = fan_in**-0.5

    def init(key: Key[Array, ""], shape: Any, dtype: Any = jnp.float32, *_: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return Start(init, init)


def fan_average(scale: float = 1.0) -> Init:
    """Kernels uniform, scaled by the mean of fan-in and fan-out; biases zero (Ho et al. 2020)."""
    start = Start(
        nn.initializers.variance_scaling(scale, "fan_avg", "uniform"), nn.initializers.zeros
    )
    return lambda _: start


def zeros(fan_in: int) -> Start:
    """Kernels and biases zero, for layers whose output starts at zero."""
    return Start(nn.initializers.zeros, nn.initializers.zeros)
