"""What the multistep samplers remember, and the order that a step can have."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import Images
from jax_ddpm.samplers.base import PerImage, log_snr_step


class History(NamedTuple):
    """The predicted clean images of earlier steps, newest first, and the steps in log-SNR.

    hs[0] led from the level of x_0s[0] to the current one, hs[1] from x_0s[1] to x_0s[0].
    """

    num_done: Int[Array, ""]
    x_0s: tuple[Images, ...]
    hs: tuple[Float[Array, "b 1 1 1"], ...]

    def append(self, x_0: Images, cur: Level, nxt: Level) -> "History":
        """The history after the step from `cur` to `nxt`, for the next one."""
        h = jnp.broadcast_to(log_snr_step(cur, nxt), self.hs[0].shape).astype(self.hs[0].dtype)
        return History(self.num_done + 1, (x_0, *self.x_0s[:-1]), (h, *self.hs[:-1]))


def empty_history(x_T: Images, length: int) -> History:
    """The history before the first step, with room for `length` predictions."""
    ones = (jnp.ones((len(x_T), 1, 1, 1), x_T.dtype),) * length
    return History(jnp.zeros((), jnp.int32), (jnp.zeros_like(x_T),) * length, ones)


def choose_order(
    highest: int, num_done: Int[Array, ""], nxt: Level, num_steps: int | None
) -> Int[Array, "..."]:
    """The order of a step: at most `highest`, at most 1 + the steps done, and 1 to the clean image.

    With `num_steps`, the length of the grid, also at most the number of steps that are left.
    """
    order = jnp.minimum(highest, num_done + 1)
    if num_steps is not None:
        order = jnp.minimum(order, num_steps - num_done)
    return jnp.where(nxt.sigma > 0, order, 1)


def phi(k: int, z: PerImage) -> PerImage:
    """phi_k(z) = sum of z^j / (j + k)! over j >= 0; phi_1(z) = (exp(z) - 1) / z. Any z, k >= 1.

    phi_{k+1}(z) = (phi_k(z) - 1 / k!) / z loses its digits near 0, so the sum is used there.
    """
    near = jnp.abs(z) < 0.5
    far = jnp.where(near, 1, z)
    by_recursion = jnp.expm1(far) / far
    for j in range(1, k):
        by_recursion = (by_recursion - 1 / _factorial(j)) / far
    by_series = jnp.zeros_like(z)
    for j in reversed(range(16)):  # Horner; the rest is below 0.5^16 / 16!
        by_series = 1 / _factorial(j + k) + z * by_series
    return jnp.where(near, by_series, by_recursion)


def _factorial(n: int) -> float:
    return float(np.prod(np.arange(1, n + 1, dtype=np.float64)))
