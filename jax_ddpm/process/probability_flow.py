"""The exact likelihood of a denoiser's probability flow (Song et al. 2021, section 4.3).

The flow carries an image to noise without any randomness. With x_t = signal x_0 + sigma eps and
signal = cos(angle), sigma = sin(angle), it is dx_t / d angle = v, where v = signal eps - sigma x_0
(Salimans & Ho 2022, appendix D). That is d(x_t / signal) / d(sigma / signal) = eps, written in
variables that stay bounded at both ends. Pure functions of arrays; images are [b, h, w, c].
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_ddpm.errors import check_choice
from jax_ddpm.process.checks import check_images
from jax_ddpm.process.levels import Level
from jax_ddpm.process.predictions import v_from
from jax_ddpm.process.shapes import sum_over_pixels
from jax_ddpm.process.types import DenoiseFn, Images

Probes = Float[Array, "k b h w c"]

PROBES: dict[str, Callable[..., Array]] = {
    "rademacher": jax.random.rademacher,
    "normal": jax.random.normal,
}
if TYPE_CHECKING:
    ProbeKind = str
else:
    ProbeKind = Literal[tuple(PROBES)]

HALF_RANGE = 127.5  # 8-bit pixels p are x = p / 127.5 - 1


def flow_log_density(
    denoise_fn: DenoiseFn, levels: Level, x: Images, probes: Probes
) -> Float[Array, " b"]:
    """log p(x) in nats of each image under the flow (Song et al. 2021, Eq. 39), to second order.

    `levels` are N + 1 noise levels with signal^2 + sigma^2 = 1, the least noise first; each of the
    N steps of Heun's method evaluates the denoiser twice. At the last level the prior is N(0, 1).
    `probes` estimate the divergence, see `velocity_and_divergence`; an image keeps its own along
    the way.

    The flow stops at the first level: the result is the density of x_t / signal there, of images
    that still hold the noise sigma / signal of that level. The denoiser should not clip x_0.
    """
    check_images("x", x)
    angles = jnp.arctan2(levels.sigma, levels.signal)
    cur, nxt = jax.tree.map(lambda a: a[:-1], levels), jax.tree.map(lambda a: a[1:], levels)

    def step(carry: tuple[Images, Array], at: Any) -> tuple[tuple[Images, Array], None]:
        (x_t, growth), (cur, nxt, size) = carry, at
        v, divergence = velocity_and_divergence(denoise_fn, x_t, cur, probes)
        ahead = x_t + size * v
        v_ahead, divergence_ahead = velocity_and_divergence(denoise_fn, ahead, nxt, probes)
        x_t += size / 2 * (v + v_ahead)
        growth += size / 2 * (divergence + divergence_ahead)
        return (x_t, growth), None

    start = (levels.signal[0] * x, jnp.zeros(len(x), x.dtype))
    (x_T, growth), _ = jax.lax.scan(step, start, (cur, nxt, jnp.diff(angles)))
    prior = -0.5 * (x_T**2 + math.log(2 * math.pi))
    return sum_over_pixels(prior + jnp.log(levels.signal[0])) + growth


def velocity_and_divergence(
    denoise_fn: DenoiseFn, x_t: Images, level: Level, probes: Probes
) -> tuple[Images, Float[Array, " b"]]:
    """v and an estimate of its divergence: the mean of probe . dv/dx_t probe (Hutchinson 1990).

    It is unbiased if the entries of a probe are uncorrelated and of variance 1, and exact for
    `exact_probes`.
    """

    def velocity(x_t: Images) -> Images:
        x_0, eps, _ = denoise_fn(x_t, level)
        return v_from(level, x_0, eps)

    v, derivative = jax.linearize(velocity, x_t)
    return v, jax.vmap(lambda probe: sum_over_pixels(probe * derivative(probe)))(probes).mean(
        axis=0
    )


def exact_probes(x: Images) -> Probes:
    """As many probes as an image has D numbers, sqrt(D) e_i: they make the divergence exact."""
    num = math.prod(x.shape[1:])
    basis = math.sqrt(num) * jnp.eye(num, dtype=x.dtype)
    return jnp.broadcast_to(basis.reshape(num, 1, *x.shape[1:]), (num, *x.shape))


def draw_probes(
    keys: Key[Array, " b"],
    image_shape: tuple[int, ...],
    num_probes: int,
    dtype: Any = jnp.float32,
    *,
    kind: str = "rademacher",
) -> Probes:
    """Probes of signs (rademacher) or standard normal numbers, each image's from its own key."""
    draw = PROBES[check_choice("kind of probes", kind, PROBES)]

    def draw_one(key: Key[Array, ""]) -> Float[Array, "k h w c"]:
        return draw(key, (num_probes, *image_shape), dtype)

    return jax.vmap(draw_one, out_axes=1)(keys)


def dequantize(x_0: Images, uniform: Images) -> Images:
    """Spread 8-bit pixels in [-1, 1] over their bins by numbers `uniform` in [0, 1)."""
    return x_0 + (uniform - 0.5) / HALF_RANGE


def bits_per_dimension(log_density: Float[Array, " b"], num_dims: int) -> Float[Array, " b"]:
    """Nats of density on [-1, 1]^D as bits per 8-bit number: bins of width 1 / 127.5.

    Averaged over `dequantize`'s noise it bounds -log2 of the probability of the 8-bit image
    (Theis et al. 2016, Eq. 3).
    """
    return (math.log(HALF_RANGE) - log_density / num_dims) / math.log(2)
