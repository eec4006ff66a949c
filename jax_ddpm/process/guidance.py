"""Guidance by a label: of the network itself (classifier-free), or by a classifier of noisy images.

Both are wrappers, so that samplers and denoisers know nothing of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_ddpm.process.levels import Level
from jax_ddpm.process.predictions import split_output
from jax_ddpm.process.shapes import expand, pixel_axes
from jax_ddpm.process.types import (
    ApplyFn,
    DenoiseFn,
    GradientFn,
    Images,
    Labels,
    Losses,
    Prediction,
    Timesteps,
)

LogProbFn = Callable[[Images, Timesteps, Labels], Losses]


def guide(uncond: Images, cond: Images, scale: float) -> Images:
    """uncond + scale (cond - uncond) (Ho & Salimans 2022, Eq. 6, where w is scale - 1).

    0 gives the unconditional output, 1 the conditional one; larger scales push further. The outputs
    may be eps, x_0 or v: all three are linear in each other at a given x_t.
    """
    return uncond + scale * (cond - uncond)


def rescale_guided(guided: Images, cond: Images, fraction: float) -> Images:
    """Give `guided` the standard deviation of `cond`, image by image, to the extent of `fraction`.

    0 leaves it as it is, 1 rescales it fully (Lin et al. 2023, Eqs. 15 and 16, their phi).
    """
    wanted, found = (jnp.std(a, axis=pixel_axes(a), keepdims=True) for a in (cond, guided))
    ratio = jnp.where(found > 0, wanted / jnp.where(found > 0, found, 1), 1)
    return fraction * (guided * ratio) + (1 - fraction) * guided


def guide_network(
    apply_fn: ApplyFn,
    null_label: int,
    scale: float,
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    learned_variance: bool = False,
) -> ApplyFn:
    """The network `apply_fn` with classifier-free guidance, in one call of twice the batch.

    `null_label` is the label that stands for "no class" in training. Outside the timesteps
    `interval` (lo, hi), both included, the output is the conditional one (Kynkaanniemi et al.
    2024). `rescale` is the fraction of `rescale_guided`. With `learned_variance` the second half of
    the channels comes from the conditional output.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> def apply_fn(params, x_t, t, label):
        ...     return x_t * params[label][:, None, None, None]
        >>> guided = jd.guide_network(apply_fn, null_label=10, scale=3.0)
        >>> x_t, t = jax.numpy.ones((2, 8, 8, 1)), jax.numpy.array([9, 9])
        >>> guided(jax.numpy.ones(11), x_t, t, label=jax.numpy.array([0, 7])).shape
        (2, 8, 8, 1)
    """

    def guided(
        params: Any,
        x_t: Images,
        t: Timesteps,
        *,
        label: Labels,
        x_self_cond: Images | None = None,
        **network_args: Any,
    ) -> Float[Array, "b h w o"]:
        given = {} if x_self_cond is None else {"x_self_cond": repeat_batch(x_self_cond)}
        labels = jnp.concatenate([label, jnp.full_like(label, null_label)])
        both = apply_fn(
            params, repeat_batch(x_t), repeat_batch(t), label=labels, **given, **network_args
        )
        (cond, variance), (uncond, _) = (
            split_output(half, learned_variance) for half in jnp.split(both, 2)
        )
        output = rescale_guided(guide(uncond, cond, scale), cond, rescale)
        if interval is not None:
            inside = (interval[0] <= t) & (t <= interval[1])
            output = jnp.where(expand(inside, output), output, cond)
        return output if variance is None else jnp.concatenate([output, variance], axis=-1)

    return guided


def repeat_batch(a: Array) -> Array:
    """The batch twice, one copy after the other."""
    return jnp.concatenate([a, a])


def classifier_gradient(log_prob: LogProbFn, label: Labels, scale: float = 1.0) -> GradientFn:
    """(x_t, level) -> scale times the gradient in x_t of log p(label | x_t), image by image.

    `log_prob(x_t, t, label)` gives one number per image, which depends on that image alone.
    """

    def gradient(x_t: Images, level: Level) -> Images:
        t = jnp.broadcast_to(level.t, x_t.shape[:1])
        return scale * jax.grad(lambda x: log_prob(x, t, label).sum())(x_t)

    return gradient


def guide_score(denoise_fn: DenoiseFn, gradient_fn: GradientFn) -> DenoiseFn:
    """Classifier guidance for every sampler: eps - sigma gradient (Dhariwal & Nichol 2021, alg. 2).

    x_0 changes with it, so that both stay consistent; this needs a level with signal > 0. Ancestral
    sampling can move its mean instead (algorithm 1): `ddpm(variance, gradient_fn)`.
    """

    def denoise(x_t: Images, level: Level, **given: Any) -> Prediction:
        prediction = denoise_fn(x_t, level, **given)
        shift = expand(level.sigma, x_t) * gradient_fn(x_t, level)
        gain = expand(level.sigma / level.signal, x_t)
        x_0, eps = prediction.x_0 + gain * shift, prediction.eps - shift
        return Prediction(x_0, eps, prediction.raw_variance)

    return denoise
