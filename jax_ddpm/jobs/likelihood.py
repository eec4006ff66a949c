"""Compiled programs for the likelihood of images under a run's network."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jax_ddpm.config.run import make_betas
from jax_ddpm.config.sample import SampleConfig
from jax_ddpm.devices.per_example import compile_per_example
from jax_ddpm.files.images import from_uint8
from jax_ddpm.jobs.build import Parts
from jax_ddpm.jobs.generate import Labels, make_denoiser
from jax_ddpm.process.denoiser import respace_denoiser
from jax_ddpm.process.diffusion import Variance
from jax_ddpm.process.grids import respace_betas
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.likelihood import make_noise_fn, make_reverse_fn, variational_bound
from jax_ddpm.process.probability_flow import (
    bits_per_dimension,
    dequantize,
    draw_probes,
    flow_log_density,
)
from jax_ddpm.process.schedules import Schedule, make_schedule
from jax_ddpm.process.types import DenoiseFn, Images

Examples = tuple[Any, Any, Any]  # pixels: uint8 [b, h, w, c]; labels: [b] or None; keys: [b]
LikelihoodFn = Callable[[Any, Examples], dict[str, Array]]


def make_bound_fn(
    parts: Parts, *, variance: Variance, clip_x_0: bool, timesteps: Int[np.ndarray, " S1"]
) -> LikelihoodFn:
    """Make one compiled program (params, (pixels, labels, keys)) -> each image's variational bound.

    `timesteps` are the ones to visit, descending and ending in -1: the whole chain, or fewer. The
    program returns, in bits per dimension, bits [b], prior [b] and terms [b, S], and the errors
    x_0_mse and eps_mse [b, S].
    """
    schedule = make_respaced_schedule(parts, timesteps)

    def bound(params: Any, examples: Examples, _: Any) -> dict[str, Array]:
        pixels, labels, keys = examples
        x_0 = from_uint8(pixels)
        denoise_fn = make_plain_denoiser(parts, params, labels, x_0, clip_x_0)
        denoise_fn = respace_denoiser(denoise_fn, timesteps)
        reverse_fn = make_reverse_fn(schedule, denoise_fn, variance)
        noise_fn = make_noise_fn(keys, x_0.shape[1:])
        found = variational_bound(schedule, reverse_fn, x_0, noise_fn)
        by_image = {name: value.T for name, value in found._asdict().items()}
        return by_image | {"bits": found.total}

    return compile_per_example(bound)


def make_flow_fn(
    parts: Parts, *, clip_x_0: bool, timesteps: Int[np.ndarray, " S"], num_probes: int
) -> LikelihoodFn:
    """Make one compiled program (params, (pixels, labels, keys)) -> bits [b], with the ODE.

    `timesteps`, ascending, are the points between which Heun's method steps along the probability
    flow.
    """
    levels = level_at(parts.schedule, jnp.asarray(timesteps))

    def flow(params: Any, examples: Examples, _: Any) -> dict[str, Array]:
        pixels, labels, keys = examples
        x_0 = from_uint8(pixels)
        uniform_keys, probe_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        shape, dtype = x_0.shape[1:], x_0.dtype
        uniform = jax.vmap(lambda key: jax.random.uniform(key, shape, dtype))(uniform_keys)
        probes = draw_probes(probe_keys, shape, num_probes)
        denoise_fn = make_plain_denoiser(parts, params, labels, x_0, clip_x_0)
        log_density = flow_log_density(denoise_fn, levels, dequantize(x_0, uniform), probes)
        return {"bits": bits_per_dimension(log_density, x_0[0].size)}

    return compile_per_example(flow)


def make_plain_denoiser(
    parts: Parts, params: Any, labels: Labels | None, x_0: Images, clip_x_0: bool
) -> DenoiseFn:
    """Make the run's denoiser, without guidance, for images `x_0` with their labels.

    A self-conditioned network gets zeros as the earlier x_0, as in the first step of sampling.
    """
    denoise_fn = make_denoiser(parts, SampleConfig(clip_x_0=clip_x_0), params, labels)
    if not parts.self_condition:
        return denoise_fn
    return partial(denoise_fn, x_self_cond=jnp.zeros_like(x_0))


def make_respaced_schedule(parts: Parts, timesteps: Int[np.ndarray, " S1"]) -> Schedule:
    """Make the tables of the run's chain, shortened to the given `timesteps`."""
    betas = respace_betas(make_betas(parts.diffusion), timesteps)
    return make_schedule(betas, clipped_log_variance=parts.diffusion.clipped_log_variance)


def flow_timesteps(num_timesteps: int, num_steps: int) -> Int[np.ndarray, " N1"]:
    """The N + 1 timesteps that the flow steps between, from 0 to T - 1.

    They grow quadratically, because the density changes most close to the images, but by at least
    one per step.
    """
    i = np.arange(num_steps + 1)
    return np.maximum(i, np.round((num_timesteps - 1) * (i / num_steps) ** 2)).astype(np.int32)
