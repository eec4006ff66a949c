"""Schedules, forward process and losses: jax_ddpm beside torch_ref."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, get_args

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
from jax_ddpm.process.pixel_losses import LossType
from jax_ddpm.process.schedules import BETAS, Schedule, make_schedule
from torch_ref import diffusion as ref
from torch_ref import schedule as ref_schedule

# The schedules by our names, as the reference computes them.
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
}
PREDICTION_TYPES: tuple[str, ...] = ("eps", "x_0", "v")
SHAPE = (5, 4, 6, 3)
T = np.array([0, 1, 250, 998, 999])


def schedules_in(
    dtype: str, name: str = "linear", clipped_log_variance: Any = "second_entry"
) -> tuple[Schedule, ref_schedule.Schedule]:
    """The schedule called `name` with T = 1000 in both frameworks, each with its own betas."""
    mine = make_schedule(
        BETAS[name](1000), dtype=dtype, clipped_log_variance=clipped_log_variance
    )  # fmt: skip
    betas = REF_BETAS[name](1000)
    return mine, ref_schedule.make_schedule(betas, getattr(torch, dtype), clipped_log_variance)


def schedule_tables(dtype: str, seed: int) -> Iterator[Pair]:
    """Every table of every schedule, and the other form of the clipped logarithm."""
    for name in BETAS:
        mine, theirs = schedules_in(dtype, name)
        for table in fields(theirs):
            a, b = getattr(mine, table.name), getattr(theirs, table.name).numpy()
            yield Pair(name, table.name, "schedule tables", a, b)
        mine, theirs = schedules_in(dtype, name, "floor")
        a, b = mine.posterior_log_variance_clipped, theirs.posterior_log_variance_clipped.numpy()
        yield Pair(name, "posterior_log_variance_clipped, floor", "schedule tables", a, b)


def forward_process(dtype: str, seed: int) -> Iterator[Pair]:
    """q_sample, q_step, the posterior, the conversions, and a network's output read three ways."""
    mine, theirs = schedules_in(dtype)
    x_0 = np.clip(draws(SHAPE, dtype, seed), -1, 1)
    noise, x_t = draws(SHAPE, dtype, seed + 1), draws(SHAPE, dtype, seed + 2)
    a, b, c, t = to_torch(x_0), to_torch(noise), to_torch(x_t), to_torch(T)
    names = ("mean", "variance", "log variance")
    posterior = ours.q_posterior(mine, x_0, x_t, jnp.asarray(T))
    expected = [to_jax(part) for part in ref.q_posterior(theirs, a, c, t)]
    group = "q, the forward process"
    yield Pair(
        group, "q_sample: x_0 to x_t", "q_sample",
        ours.q_sample(mine, x_0, jnp.asarray(T), noise), to_jax(ref.q_sample(theirs, a, t, b)),
    )  # fmt: skip
    yield Pair(
        group, "q_step: x_t-1 to x_t", "one-step q",
        ours.q_step(mine, x_0, jnp.asarray(T), noise), to_jax(ref.q_step(theirs, a, t, b)),
    )  # fmt: skip
    for name, value, reference in zip(names, posterior, expected, strict=True):
        reference = reference.reshape(value.shape)
        yield Pair(group, f"q_posterior: {name}", "q_posterior", value, reference)
    yield from _conversions(mine, theirs, x_0, noise, x_t)
    yield from _predictions(dtype, mine, theirs, noise, x_t)


def _conversions(
    mine: Schedule, theirs: ref_schedule.Schedule, x_0: Any, given: Any, x_t: Any
) -> Iterator[Pair]:
    """`given` stands for a prediction of eps, x_0 or v."""
    level = level_at(mine, jnp.asarray(T))
    a, b, c, t = to_torch(x_0), to_torch(given), to_torch(x_t), to_torch(T)
    pairs = {
        "x_0 from eps": (read.x_0_from_eps(level, x_t, given), ref.x_0_from_eps(theirs, c, t, b)),
        "eps from x_0": (read.eps_from_x_0(level, x_t, given), ref.eps_from_x_0(theirs, c, t, b)),
        "x_0 from v": (read.x_0_from_v(level, x_t, given), ref.x_0_from_v(theirs, c, t, b)),
        "eps from v": (read.eps_from_v(level, x_t, given), ref.eps_from_v(theirs, c, t, b)),
        "v": (read.v_from(level, x_0, given), ref.v_from_x_0_and_eps(theirs, a, b, t)),
    }
    for what, (value, reference) in pairs.items():
        kind = "eps, x_0 and v conversions"
        yield Pair("eps, x_0 and v", what, kind, value, to_jax(reference))


def _predictions(
    dtype: str, mine: Schedule, theirs: ref_schedule.Schedule, output: Any, x_t: Any
) -> Iterator[Pair]:
    level, t = level_at(mine, jnp.asarray(T)), to_torch(T)
    for kind in PREDICTION_TYPES:
        for clip in (True, False):
            denoise_fn = make_denoise_fn(
                lambda params, x, t: jnp.asarray(output), None, prediction_type=kind, clip_x_0=clip
            )
            prediction = denoise_fn(jnp.asarray(x_t), level)
            reference = ref.to_x_0_and_eps(
                theirs, to_torch(output), to_torch(x_t), t, kind, clip
            )  # fmt: skip
            yield Pair(
                "a network's output, as x_0 and eps",
                f"{kind}, {'clipped' if clip else 'not clipped'}",
                "predicted x_0 and eps",
                (prediction.x_0, prediction.eps),
                tuple(map(to_jax, reference)),
            )


def losses(dtype: str, seed: int) -> Iterator[Pair]:
    """Every loss of every prediction type, per example."""
    mine, theirs = schedules_in(dtype)
    x_0 = np.clip(draws(SHAPE, dtype, seed), -1, 1)
    noise, output = draws(SHAPE, dtype, seed + 1), draws(SHAPE, dtype, seed + 2)
    for kind in PREDICTION_TYPES:
        for loss_type in get_args(LossType):
            value = diffusion_loss(
                lambda params, x, t: jnp.asarray(output), None, mine, x_0, jnp.asarray(T), noise,
                prediction_type=kind, loss_type=loss_type,
            )  # fmt: skip
            reference = ref.training_loss(
                lambda x, t: to_torch(output), theirs, to_torch(x_0), to_torch(T), to_torch(noise),
                kind, loss_type,
            )  # fmt: skip
            yield Pair(f"prediction of {kind}", loss_type, "losses", value, reference.numpy())
