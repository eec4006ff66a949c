"""Pair schedules, the forward process and losses of jax_ddpm and torch_ref."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from jax_ddpm.parity.quantities import Pair
from jax_ddpm.parity.twins import draws, to_jax, to_torch
from jax_ddpm.process import diffusion as ours
from jax_ddpm.process import predictions as read
from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.losses import diffusion_loss
from jax_ddpm.process.pixel_losses import PIXEL_LOSSES
from jax_ddpm.process.schedules import BETAS, Schedule, make_schedule
from torch_ref import diffusion as ref
from torch_ref import schedule as ref_schedule

# The reference's version of each of our schedules.
REF_BETAS: dict[str, Callable[[int], np.ndarray]] = {
    "linear": ref_schedule.linear_betas,
    "linear_rescaled": lambda T: ref_schedule.linear_betas(T, rescale=True),
    "quadratic": ref_schedule.quadratic_betas,
    "sigmoid": ref_schedule.sigmoid_betas,
    "sigmoid_cumprod": ref_schedule.sigmoid_cumprod_betas,
    "cosine": ref_schedule.cosine_betas,
    "cosine_clipped": lambda T: ref_schedule.cosine_betas(T, clip=(1e-4, 0.9999)),
    "cosine_epita": lambda T: ref_schedule.cosine_betas(T, clip=(1e-4, 0.02)),
    "quadratic_slip": lambda T: ref_schedule.quadratic_betas(T, start=1e-4**4, end=0.02**4),
    "const": lambda T: ref_schedule.warmup_betas(T, share=0.0),
    "warmup10": lambda T: ref_schedule.warmup_betas(T, share=0.1),
    "warmup50": lambda T: ref_schedule.warmup_betas(T, share=0.5),
    "jsd": ref_schedule.jsd_betas,
}
PREDICTION_TYPES: tuple[str, ...] = ("eps", "x_0", "v")
LOSS_TYPES = tuple(PIXEL_LOSSES)
SHAPE = (5, 4, 6, 3)
T = np.array([0, 1, 250, 998, 999])


def make_schedules(
    dtype: str, name: Any = "linear", clipped_log_variance: Any = "second_entry"
) -> tuple[Schedule, ref_schedule.Schedule]:
    """Make the schedule `name` with T = 1000 in both frameworks, each from its own betas."""
    mine = make_schedule(BETAS[name](1000), dtype=dtype, clipped_log_variance=clipped_log_variance)
    betas = REF_BETAS[name](1000)
    return mine, ref_schedule.make_schedule(betas, getattr(torch, dtype), clipped_log_variance)


def pair_schedules(dtype: str, seed: int) -> Iterator[Pair]:
    """Pair every table of every schedule, and both forms of the clipped logarithm."""
    for name in BETAS:
        mine, theirs = make_schedules(dtype, name)
        for table in fields(theirs):
            a, b = getattr(mine, table.name), getattr(theirs, table.name).numpy()
            yield Pair(name, table.name, "schedule tables", a, b)
        mine, theirs = make_schedules(dtype, name, "floor")
        a, b = mine.posterior_log_variance_clipped, theirs.posterior_log_variance_clipped.numpy()
        yield Pair(name, "posterior_log_variance_clipped, floor", "schedule tables", a, b)


def pair_forward_process(dtype: str, seed: int) -> Iterator[Pair]:
    """Pair q_sample, q_step, the posterior, the conversions, and three readings of an output."""
    mine, theirs = make_schedules(dtype)
    x_0 = np.clip(draws(SHAPE, dtype, seed), -1, 1)
    noise, x_t = draws(SHAPE, dtype, seed + 1), draws(SHAPE, dtype, seed + 2)
    yield from _pair_q(mine, theirs, x_0, noise, x_t)
    yield from _pair_conversions(mine, theirs, x_0, noise, x_t)
    yield from _pair_predictions(mine, theirs, noise, x_t)


def _pair_q(
    mine: Schedule, theirs: ref_schedule.Schedule, x_0: Any, noise: Any, x_t: Any
) -> Iterator[Pair]:
    a, b, c, t = to_torch(x_0), to_torch(noise), to_torch(x_t), to_torch(T)
    x_0, noise, x_t, timesteps = map(jnp.asarray, (x_0, noise, x_t, T))
    group = "q, the forward process"
    sampled, expected = ours.q_sample(mine, x_0, timesteps, noise), ref.q_sample(theirs, a, t, b)
    yield Pair(group, "q_sample: x_0 to x_t", "q_sample", sampled, to_jax(expected))
    stepped, expected = ours.q_step(mine, x_0, timesteps, noise), ref.q_step(theirs, a, t, b)
    yield Pair(group, "q_step: x_t-1 to x_t", "one-step q", stepped, to_jax(expected))
    posterior = ours.q_posterior(mine, x_0, x_t, timesteps)
    names = ("mean", "variance", "log variance")
    for name, value, tensor in zip(names, posterior, ref.q_posterior(theirs, a, c, t), strict=True):
        reference = to_jax(tensor).reshape(value.shape)
        yield Pair(group, f"q_posterior: {name}", "q_posterior", value, reference)


def _pair_conversions(
    mine: Schedule, theirs: ref_schedule.Schedule, x_0: Any, output: Any, x_t: Any
) -> Iterator[Pair]:
    """Pair the conversions, with `output` as the prediction of eps, x_0 or v."""
    level = level_at(mine, jnp.asarray(T))
    a, b, c, t = to_torch(x_0), to_torch(output), to_torch(x_t), to_torch(T)
    x_0, given, x_t = map(jnp.asarray, (x_0, output, x_t))
    pairs = {
        "x_0 from eps": (read.x_0_from_eps(level, x_t, given), ref.x_0_from_eps(theirs, c, t, b)),
        "eps from x_0": (read.eps_from_x_0(level, x_t, given), ref.eps_from_x_0(theirs, c, t, b)),
        "x_0 from v": (read.x_0_from_v(level, x_t, given), ref.x_0_from_v(theirs, c, t, b)),
        "eps from v": (read.eps_from_v(level, x_t, given), ref.eps_from_v(theirs, c, t, b)),
        "v": (read.v_from(level, x_0, given), ref.v_from_x_0_and_eps(theirs, a, b, t)),
    }
    for what, (value, reference) in pairs.items():
        tolerance = "eps, x_0 and v conversions"
        yield Pair("eps, x_0 and v", what, tolerance, value, to_jax(reference))


def _pair_predictions(
    mine: Schedule, theirs: ref_schedule.Schedule, output: Any, x_t: Any
) -> Iterator[Pair]:
    level = level_at(mine, jnp.asarray(T))
    b, c, t = to_torch(output), to_torch(x_t), to_torch(T)
    for kind in PREDICTION_TYPES:
        for clip in (True, False):
            denoise_fn = make_denoise_fn(
                lambda params, x, t: jnp.asarray(output), None, prediction_type=kind, clip_x_0=clip
            )
            prediction = denoise_fn(jnp.asarray(x_t), level)
            reference = ref.to_x_0_and_eps(theirs, b, c, t, kind, clip)
            yield Pair(
                "a network's output, as x_0 and eps",
                f"{kind}, {'clipped' if clip else 'not clipped'}",
                "predicted x_0 and eps",
                (prediction.x_0, prediction.eps),
                tuple(map(to_jax, reference)),
            )


def pair_losses(dtype: str, seed: int) -> Iterator[Pair]:
    """Pair every loss for every prediction type, per example."""
    mine, theirs = make_schedules(dtype)
    x_0 = np.clip(draws(SHAPE, dtype, seed), -1, 1)
    noise, output = draws(SHAPE, dtype, seed + 1), draws(SHAPE, dtype, seed + 2)
    a, b, t = to_torch(x_0), to_torch(noise), to_torch(T)

    def apply_fn(params: Any, x: Any, t: Any) -> Any:
        return jnp.asarray(output)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return to_torch(output)

    args = apply_fn, None, mine, jnp.asarray(x_0), jnp.asarray(T), jnp.asarray(noise)
    for kind in PREDICTION_TYPES:
        for loss_type in LOSS_TYPES:
            value = diffusion_loss(*args, prediction_type=kind, loss_type=loss_type)
            reference = ref.training_loss(model, theirs, a, t, b, kind, loss_type)
            yield Pair(f"prediction of {kind}", loss_type, "losses", value, reference.numpy())
