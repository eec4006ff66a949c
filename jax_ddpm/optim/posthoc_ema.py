"""Power-function averages of the parameters, and the reconstruction of any of them after training.

Such an average at step t weighs the parameters of step tau by the profile (gamma + 1) tau^gamma /
t^(gamma + 1) on 0..t. The profile's standard deviation divided by t is its relative width
sigma_rel. Tables here are NumPy float64. Source: Karras et al. 2024, arXiv:2312.02696, section 3
and appendix C.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_ddpm.errors import UserError

Steps = Int[np.ndarray, " n"] | Float[np.ndarray, " n"]
Numbers = Float[np.ndarray, "..."] | float
MAX_SIGMA_REL = 1 / math.sqrt(12)  # for gamma = 0, the plain mean of all steps


def sigma_rel_from_gamma(gamma: float) -> float:
    """The relative width of the profile with exponent `gamma` > -1 (Eq. 123)."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """The exponent >= 0 of the profile of relative width `sigma_rel` (Eq. 126, algorithm 2).

    It is the largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2. Raises
    UserError unless 0 < sigma_rel < 0.2887, the width of a plain mean.
    """
    if not 0 < sigma_rel < MAX_SIGMA_REL:
        raise UserError(f"a relative width is between 0 and {MAX_SIGMA_REL:.4f}, got {sigma_rel}")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def power_function_rate(
    t: Int[Array, "..."] | Float[Array, "..."], gamma: float
) -> Float[Array, "..."]:
    """1 - beta_t with beta_t = (1 - 1/t)^(gamma + 1), at the t-th update, t >= 1 (Eq. 127).

    With these rates the average after t updates weighs the k-th by exactly the integral of the
    profile over k-1..k, so the first update is a copy. The rate keeps its digits in float32.
    """
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / jnp.asarray(t, float)))


def profile_product(t_a: Numbers, gamma_a: Numbers, t_b: Numbers, gamma_b: Numbers) -> Numbers:
    """The integral of the product of two profiles that end at `t_a` and `t_b` (Eq. 151)."""
    first, last = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    gamma_of_last = np.where(t_a < t_b, gamma_b, gamma_a)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale / last * (first / last) ** gamma_of_last


def solve_weights(
    steps: Steps, gammas: Float[np.ndarray, " n"], step: float, gamma: float
) -> Float[np.ndarray, " n"]:
    """The weights with which stored averages come closest to the one of `gamma` at `step`.

    The stored ones end at `steps` with exponents `gammas`; no pair occurs twice. Least squares
    between the profiles (algorithm 3). As in the authors' program, the weights are divided by their
    sum, so that parameters that do not move are reproduced. For the error see `profile_error`.
    """
    products, targets = _profile_products(steps, gammas, step, gamma)
    size = np.sqrt(np.diag(products))  # profiles of norm 1 are better conditioned
    weights = np.linalg.solve(products / np.outer(size, size), targets / size) / size
    return weights / weights.sum()


def profile_error(
    weights: Float[np.ndarray, " n"],
    steps: Steps,
    gammas: Float[np.ndarray, " n"],
    step: float,
    gamma: float,
) -> float:
    """The distance from the weighted sum of profiles to the profile wanted, over its norm.

    The profile wanted has exponent `gamma` and ends at `step`. If parameters make independent
    jumps, the uncertainty of the average grows with this error; a stored profile has 0.
    """
    products, targets = _profile_products(steps, gammas, step, gamma)
    t, g = np.float64(step), np.float64(gamma)
    norm = profile_product(t, g, t, g)
    squared = norm - 2 * weights @ targets + weights @ products @ weights
    return float(np.sqrt(max(squared, 0.0) / norm))


def _profile_products(
    steps: Steps, gammas: Float[np.ndarray, " n"], step: float, gamma: float
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, " n"]]:
    t, g = np.asarray(steps, np.float64), np.asarray(gammas, np.float64)
    among = np.asarray(profile_product(t[:, None], g[:, None], t, g))
    return among, np.asarray(profile_product(t, g, np.float64(step), np.float64(gamma)))


def reconstruct(weights: Float[np.ndarray, " n"], averages: Iterable[Any]) -> Any:
    """The weighted sum of parameter trees, in float64; only one of `averages` is held at a time."""
    total: Any = None
    for weight, average in zip(weights, averages, strict=True):
        part = jax.tree.map(lambda a, w=weight: w * np.asarray(a, np.float64), average)
        total = part if total is None else jax.tree.map(np.add, total, part)
    return total
