"""Count a network's operations, and measure how fast the machine multiplies matrices."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_ddpm.jobs.bench import timing
from jax_ddpm.jobs.build import Parts
from jax_ddpm.models.architecture import ImageShape


def count_operations(
    parts: Parts, batch_size: int, image_shape: ImageShape, *, training: bool
) -> float:
    """Count the operations of one call of the network; with `training`, of its gradient too.

    The count is XLA's, of the program before optimisation: both frameworks compute as much.
    """
    params = jax.eval_shape(parts.network.init, jax.random.key(0))
    x_t = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    t = jax.ShapeDtypeStruct((batch_size,), jnp.int32)

    def call(params: Any, x_t: Any, t: Any) -> Any:
        label = None if parts.num_labels is None else t
        return (parts.network.apply_fn(params, x_t, t, label=label) ** 2).mean()

    program = jax.jit(jax.grad(call) if training else call)
    found: Any = program.lower(params, x_t, t).cost_analysis()
    return float(found["flops"])


def measure_peak(dtype: str, tries: int = 6) -> float:
    """Measure the most operations per second of a product of two large square matrices."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    seconds = [
        timing.measure_seconds(lambda: jax.block_until_ready(product(matrix, matrix)))
        for _ in range(tries)
    ]
    return float(2 * side**3 / min(seconds))
