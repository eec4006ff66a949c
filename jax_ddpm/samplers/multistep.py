"""What the multistep samplers remember, the order of a step, and how they extrapolate."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import Images
from jax_ddpm.samplers.base import PerImage

SHORT_GRID = 15  # on shorter grids the last steps have a lower order (code of Lu et al.)


class History(NamedTuple):
    """What the network predicted in earlier steps, newest first, and the sizes of these steps.

    The values are all x_0 or all eps. hs[0] led from the level of values[0] to the current one,
    hs[1] from values[1] to values[0]. A size is measured in the variable that the solver
    extrapolates over, such as log-SNR.
    """

    num_done: Int[Array, ""]
    values: tuple[Images, ...]
    hs: tuple[Float[Array, "b 1 1 1"], ...]

    def append(self, value: Images, h: PerImage) -> "History":
        """The history after a step of size `h`, for the next one."""
        h = jnp.broadcast_to(h, self.hs[0].shape).astype(self.hs[0].dtype)
        return History(self.num_done + 1, (value, *self.values[:-1]), (h, *self.hs[:-1]))


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


def measure_places(hs: Sequence[PerImage]) -> list[PerImage]:
    """Where the values of a history with steps `hs` lie, as seen from the current level."""
    return [-behind for behind in accumulate(hs)]


def short_grid(num_steps: int | None) -> int | None:
    """`num_steps` if it is so small that the last steps have a lower order."""
    return num_steps if num_steps is not None and num_steps < SHORT_GRID else None


def integrate_changes(
    values: Sequence[Images],
    places: Sequence[PerImage],
    moments: Sequence[PerImage],
    order: Int[Array, "..."],
) -> Images:
    """The integral of p(u) - values[0] over a step, where p goes through `values` at `places`.

    values[0] lies at u = 0, and the others at `places`, in any order. p is Newton's polynomial
    through the first `order` of them: each adds a term. moments[j] is the integral of u^j over the
    step, with the weight that the solver gives to u.
    """
    places = [jnp.zeros_like(places[0]), *places]
    total, differences = jnp.zeros_like(values[0]), list(values)
    product = [jnp.ones_like(places[0])]  # (u - u_0) ... (u - u_{k-1}): coefficients of u^0, ...
    for k in range(1, len(values)):
        apart = [places[j + k] - places[j] for j in range(len(values) - k)]
        differences = [(b - a) / d for (a, b), d in zip(pairwise(differences), apart, strict=True)]
        product = multiply_by_root(product, places[k - 1])
        terms = (c * m for c, m in zip(product, moments, strict=False))
        total += jnp.where(
            order > k, sum(terms, start=jnp.zeros_like(places[0])) * differences[0], 0
        )
    return total


def multiply_by_root(coefficients: Sequence[PerImage], root: PerImage) -> list[PerImage]:
    """The coefficients of a polynomial times (u - root), that of u^0 first."""
    zero = jnp.zeros_like(coefficients[0])
    pairs = zip([zero, *coefficients], [*coefficients, zero], strict=True)
    return [lower - root * same for lower, same in pairs]


def integrate_power(j: int, h: PerImage, rate: PerImage | float) -> PerImage:
    """The integral of exp(rate (h - u)) u^j over u from 0 to h."""
    return _factorial(j) * h ** (j + 1) * phi(j + 1, rate * h)


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
