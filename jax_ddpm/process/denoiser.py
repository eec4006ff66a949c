"""From a network to a denoiser: the only place that knows prediction type and clipping."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from jax_ddpm.process.checks import check_images, check_network_args, check_output
from jax_ddpm.process.levels import Level
from jax_ddpm.process.predictions import (
    check_prediction_type,
    eps_from_x_0,
    split_output,
    to_prediction,
)
from jax_ddpm.process.shapes import expand
from jax_ddpm.process.types import ApplyFn, DenoiseFn, Images, Prediction

SETTINGS = (
    "prediction_type",
    "clip_x_0",
    "rederive_eps",
    "dynamic_threshold",
    "learned_variance",
)  # of make_denoise_fn


def make_denoise_fn(
    apply_fn: ApplyFn,
    params: Any,
    *,
    prediction_type: str = "eps",
    clip_x_0: bool = True,
    rederive_eps: bool = True,
    dynamic_threshold: float | None = None,
    learned_variance: bool = False,
    **network_args: Any,
) -> DenoiseFn:
    """A function (x_t, level) -> Prediction(x_0, eps) from a network.

    `clip_x_0` clips x_0 to [-1, 1], as the sampler of Ho et al. 2020 does (it is not in the paper).
    eps is then recomputed from the clipped x_0, so that both stay consistent; `rederive_eps=False`
    keeps the network's own eps (the default of diffusers' DDIM). At the clean level, where x_0
    does not determine eps, the network's own is kept too. `dynamic_threshold`, a quantile, takes
    the place of clipping: see `threshold`. With `learned_variance` the second half of the output's
    channels becomes the prediction's `raw_variance`.

    `network_args` go to `apply_fn`; so does the returned function's optional argument
    `x_self_cond`, an earlier x_0 (see `sample`). Raises UserError for a name among them that looks
    like a misspelt setting, for an x_t that is not a float image with the channels last, and for an
    output whose shape does not fit x_t.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> def apply_fn(params, x_t, t):
        ...     return params * x_t
        >>> denoise_fn = jd.make_denoise_fn(apply_fn, 0.5, prediction_type="v")
        >>> level = jd.level_at(jd.named_schedule("cosine", 1000), 500)
        >>> x_0, eps, _ = denoise_fn(jax.numpy.ones((2, 8, 8, 1)), level)
        >>> x_0.shape, eps.shape
        ((2, 8, 8, 1), (2, 8, 8, 1))
    """
    prediction_type = check_prediction_type(prediction_type)
    check_network_args(network_args, SETTINGS, "make_denoise_fn")

    def denoise(x_t: Images, level: Level, x_self_cond: Images | None = None) -> Prediction:
        check_images("x_t", x_t)
        given = {} if x_self_cond is None else {"x_self_cond": x_self_cond}
        t = jnp.broadcast_to(level.t, x_t.shape[:1])
        output = apply_fn(params, x_t, t, **network_args, **given)
        check_output(output, x_t, learned_variance)
        output, raw_variance = split_output(output.astype(x_t.dtype), learned_variance)
        x_0, eps, _ = to_prediction(output, x_t, level, prediction_type)
        if clip_x_0 or dynamic_threshold is not None:
            quantile = dynamic_threshold
            x_0 = jnp.clip(x_0, -1, 1) if quantile is None else threshold(x_0, quantile)
            if rederive_eps:
                eps = jnp.where(expand(level.sigma, x_t) > 0, eps_from_x_0(level, x_t, x_0), eps)
        return Prediction(x_0, eps, raw_variance)

    return denoise


def threshold(x_0: Images, quantile: float, largest: float = float("inf")) -> Images:
    """Clip each image to the `quantile`, 0 to 1, of its absolute pixels, and divide by it.

    A quantile below 1 counts as 1, which is clipping to [-1, 1] (Saharia et al. 2022, section 2.3).
    One above `largest` counts as `largest` (diffusers' `sample_max_value`; only comparisons with
    recordings of diffusers use it).
    """
    sizes = jnp.quantile(jnp.abs(x_0), quantile, axis=(1, 2, 3), keepdims=True)
    limit = jnp.clip(sizes, 1, largest)
    return jnp.clip(x_0, -limit, limit) / limit


def rescale_timesteps(apply_fn: ApplyFn, num_timesteps: int) -> ApplyFn:
    """The same network, called with the float t * 1000 / T (code of Nichol & Dhariwal 2021).

    It then sees times between 0 and 1000, whatever T it was trained with.
    """

    def rescaled(
        params: Any, x_t: Images, t: Num[Array, " b"], **network_args: Any
    ) -> Float[Array, "b h w o"]:
        dtype = jnp.promote_types(x_t.dtype, jnp.float32)
        return apply_fn(params, x_t, t.astype(dtype) * (1000 / num_timesteps), **network_args)

    return rescaled


def respace_denoiser(denoise_fn: DenoiseFn, timesteps: Int[np.ndarray, " num_levels"]) -> DenoiseFn:
    """The same denoiser at steps 0..S-1 of the chain of `respace_betas(betas, timesteps)`.

    The network is called with the timestep of the full chain (code of Nichol & Dhariwal 2021).
    """
    visited = jnp.asarray(timesteps[-2::-1])

    def denoise(x_t: Images, level: Level, **given: Any) -> Prediction:
        return denoise_fn(x_t, level._replace(t=visited[level.t]), **given)

    return denoise
