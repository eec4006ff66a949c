"""The likelihood of images under a run's network: compiled programs, and what to say of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jax_ddpm.devices.per_example import compile_per_example
from jax_ddpm.files.images import from_uint8
from jax_ddpm.jobs.build import Parts
from jax_ddpm.process.denoiser import make_denoise_fn, respace_denoiser
from jax_ddpm.process.diffusion import Variance
from jax_ddpm.process.grids import respace_betas
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.likelihood import noise_by_timestep, reverse_process, variational_bound
from jax_ddpm.process.probability_flow import (
    bits_per_dimension,
    dequantize,
    draw_probes,
    flow_log_density,
)
from jax_ddpm.process.schedules import BETAS, Schedule, make_schedule, rescale_zero_terminal_snr
from jax_ddpm.process.types import DenoiseFn, Images

Labels = Int[Array | np.ndarray, " b"]
Examples = tuple[Any, Any, Any]  # pixels: uint8 [b, h, w, c]; labels: [b] or None; keys: [b]
LikelihoodFn = Callable[[Any, Examples], dict[str, Array]]


def make_bound_fn(
    parts: Parts, *, variance: Variance, clip_x_0: bool, timesteps: Int[np.ndarray, " S+1"]
) -> LikelihoodFn:
    """One compiled program (params, (pixels, labels, keys)) -> the bound of each image, by t.

    `timesteps` are visited, descending and ending in -1: all of the chain, or fewer (respacing).
    Bits per dimension: bits [b], prior [b], terms [b, S]; x_0_mse and eps_mse are [b, S].
    """
    schedule = schedule_of(parts, timesteps)

    def bound(params: Any, examples: Examples, _: Any) -> dict[str, Array]:
        pixels, labels, keys = examples
        x_0 = from_uint8(pixels)
        denoise_fn = respace_denoiser(denoiser_of(parts, params, labels, x_0, clip_x_0), timesteps)
        reverse_fn = reverse_process(schedule, denoise_fn, variance)
        noise_fn = noise_by_timestep(keys, x_0.shape[1:])
        found = variational_bound(schedule, reverse_fn, x_0, noise_fn)
        by_image = {name: value.T for name, value in found._asdict().items()}
        return by_image | {"bits": found.total}

    return compile_per_example(bound)


def make_flow_fn(
    parts: Parts, *, clip_x_0: bool, timesteps: Int[np.ndarray, " S"], num_probes: int
) -> LikelihoodFn:
    """One compiled program (params, (pixels, labels, keys)) -> bits [b] by the probability flow.

    `timesteps` ascend: the levels between which Heun's method steps.
    """
    levels = level_at(parts.schedule, jnp.asarray(timesteps))

    def flow(params: Any, examples: Examples, _: Any) -> dict[str, Array]:
        pixels, labels, keys = examples
        x_0 = from_uint8(pixels)
        uniform_keys, probe_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        shape, dtype = x_0.shape[1:], x_0.dtype
        uniform = jax.vmap(lambda key: jax.random.uniform(key, shape, dtype))(uniform_keys)
        probes = draw_probes(probe_keys, shape, num_probes)
        denoise_fn = denoiser_of(parts, params, labels, x_0, clip_x_0)
        log_density = flow_log_density(denoise_fn, levels, dequantize(x_0, uniform), probes)
        return {"bits": bits_per_dimension(log_density, x_0[0].size)}

    return compile_per_example(flow)


def denoiser_of(
    parts: Parts, params: Any, labels: Labels | None, x_0: Images, clip_x_0: bool
) -> DenoiseFn:
    """The denoiser of a run, given the labels of the images.

    A self-conditioned network is given zeros for an earlier x_0, as in the first step of sampling.
    """
    denoise_fn = make_denoise_fn(
        parts.network.apply_fn,
        params,
        prediction_type=parts.diffusion.prediction_type,
        clip_x_0=clip_x_0,
        learned_variance=parts.learned_variance,
        label=labels,
    )
    if not parts.self_condition:
        return denoise_fn
    return partial(denoise_fn, x_self_cond=jnp.zeros_like(x_0))


def schedule_of(parts: Parts, timesteps: Int[np.ndarray, " S+1"]) -> Schedule:
    """The tables of the run's chain, cut to the `timesteps` that are visited."""
    diffusion = parts.diffusion
    betas = BETAS[diffusion.schedule](diffusion.num_timesteps)
    if diffusion.zero_terminal_snr:
        betas = rescale_zero_terminal_snr(betas)
    return make_schedule(
        respace_betas(betas, timesteps), clipped_log_variance=diffusion.clipped_log_variance
    )


def flow_timesteps(num_timesteps: int, num_steps: int) -> Int[np.ndarray, " N+1"]:
    """The N + 1 timesteps between which the flow is followed: from 0 to T - 1, dense at 0.

    They grow quadratically, for it is close to the images that the density changes most; one per
    step at the least.
    """
    i = np.arange(num_steps + 1)
    return np.maximum(i, np.round((num_timesteps - 1) * (i / num_steps) ** 2)).astype(np.int32)
