"""The algebra of the forward process and the losses: jax_ddpm against torch_ref."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import draws, to_jax, to_torch

from jax_ddpm import diffusion as ours
from jax_ddpm.denoiser import make_denoise_fn
from jax_ddpm.losses import diffusion_loss
from jax_ddpm.schedules import level_at, linear_betas, make_schedule
from torch_ref import diffusion as ref
from torch_ref import schedule as ref_schedule

THEIRS = "torch_ref"
SHAPE = (5, 4, 6, 3)
T = np.array([0, 1, 250, 998, 999])


@pytest.fixture
def schedules(dtype):
    betas = linear_betas(1000)
    torch_dtype = getattr(torch, dtype)
    return make_schedule(betas, dtype=dtype), ref_schedule.make_schedule(betas, torch_dtype)


@pytest.fixture
def images(dtype):
    """x_0 and two draws of noise."""
    return np.clip(draws(SHAPE, dtype, 0), -1, 1), draws(SHAPE, dtype, 1), draws(SHAPE, dtype, 2)


def test_q_sample(compare, dtype, schedules, images):
    x_0, noise, _ = images
    theirs = ref.q_sample(schedules[1], to_torch(x_0), to_torch(T), to_torch(noise))
    compare(
        "q_sample", ours.q_sample(schedules[0], x_0, jnp.asarray(T), noise), to_jax(theirs), dtype
    )


def test_q_step(compare, dtype, schedules, images):
    x_0, noise, _ = images
    theirs = ref.q_step(schedules[1], to_torch(x_0), to_torch(T), to_torch(noise))
    compare(
        "one-step q", ours.q_step(schedules[0], x_0, jnp.asarray(T), noise), to_jax(theirs), dtype
    )


def test_q_posterior(compare, dtype, schedules, images):
    x_0, x_t, _ = images
    posterior = ours.q_posterior(schedules[0], x_0, x_t, jnp.asarray(T))
    theirs = ref.q_posterior(schedules[1], to_torch(x_0), to_torch(x_t), to_torch(T))
    for mine, reference in zip(posterior, theirs, strict=True):
        expected = to_jax(reference)
        compare("q_posterior", mine, expected.reshape(mine.shape), dtype)


def test_conversions(compare, dtype, schedules, images):
    x_t, output, x_0 = images
    level = level_at(schedules[0], jnp.asarray(T))
    a, b, c, t = to_torch(x_t), to_torch(output), to_torch(x_0), to_torch(T)
    pairs = [
        (ours.x_0_from_eps(level, x_t, output), ref.x_0_from_eps(schedules[1], a, t, b)),
        (ours.eps_from_x_0(level, x_t, output), ref.eps_from_x_0(schedules[1], a, t, b)),
        (ours.x_0_from_v(level, x_t, output), ref.x_0_from_v(schedules[1], a, t, b)),
        (ours.eps_from_v(level, x_t, output), ref.eps_from_v(schedules[1], a, t, b)),
        (ours.v_from(level, x_0, output), ref.v_from_x_0_and_eps(schedules[1], c, b, t)),
    ]
    for mine, theirs in pairs:
        compare("eps, x_0 and v conversions", mine, to_jax(theirs), dtype)


@pytest.mark.parametrize("clip_x_0", [True, False])
@pytest.mark.parametrize("prediction_type", ["eps", "x_0", "v"])
def test_predictions_of_a_network(compare, dtype, schedules, images, prediction_type, clip_x_0):
    x_t, output, _ = images
    denoise_fn = make_denoise_fn(
        lambda params, x, t: jnp.asarray(output),
        None,
        prediction_type=prediction_type,
        clip_x_0=clip_x_0,
    )
    prediction = denoise_fn(jnp.asarray(x_t), level_at(schedules[0], jnp.asarray(T)))
    theirs = ref.to_x_0_and_eps(
        schedules[1], to_torch(output), to_torch(x_t), to_torch(T), prediction_type, clip_x_0
    )
    compare("predicted x_0 and eps", tuple(prediction), tuple(map(to_jax, theirs)), dtype)


@pytest.mark.parametrize("loss_type", ["l1", "l2", "huber"])
@pytest.mark.parametrize("prediction_type", ["eps", "x_0", "v"])
def test_losses(compare, dtype, schedules, images, prediction_type, loss_type):
    x_0, noise, output = images
    loss = diffusion_loss(
        lambda params, x, t: jnp.asarray(output),
        None,
        schedules[0],
        x_0,
        jnp.asarray(T),
        noise,
        prediction_type=prediction_type,
        loss_type=loss_type,
    )
    theirs = ref.training_loss(
        lambda x, t: to_torch(output),
        schedules[1],
        to_torch(x_0),
        to_torch(T),
        to_torch(noise),
        prediction_type,
        loss_type,
    )
    compare("losses", loss, theirs.numpy(), dtype)
