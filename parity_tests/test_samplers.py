"""Sampler steps and whole chains with the same noise: jax_ddpm against torch_ref."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import draws, to_jax, to_torch, twin_networks

from jax_ddpm.denoiser import make_denoise_fn
from jax_ddpm.diffusion import Prediction
from jax_ddpm.samplers import SamplerState, ddim, ddpm, sample
from jax_ddpm.schedules import BETAS, Level, level_at, make_schedule, timestep_grid
from torch_ref import sampler as ref
from torch_ref.schedule import make_schedule as make_ref_schedule

THEIRS = "torch_ref"
SHAPE = (1, 8, 8, 3)
OURS = {
    "ddpm fixed_small": ddpm("fixed_small"),
    "ddpm fixed_large": ddpm("fixed_large"),
    "ddim 0.0": ddim(0.0),
    "ddim 0.5": ddim(0.5),
    "ddim 1.0": ddim(1.0),
}


def schedules(dtype, name="linear", num_timesteps=1000):
    betas = BETAS[name](num_timesteps)
    return make_schedule(betas, dtype=dtype), make_ref_schedule(betas, getattr(torch, dtype))


def keep_x_t(state, prediction):
    return state.x_t


@pytest.mark.parametrize(("t", "t_prev"), [(999, 998), (500, 480), (1, 0), (999, 0), (0, -1)])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("sampler", OURS)
def test_one_step(compare, dtype, sampler, schedule, t, t_prev):
    ours, theirs = schedules(dtype, schedule)
    x_t, x_0, eps, noise = (draws(SHAPE, dtype, seed) for seed in range(4))
    levels = level_at(ours, jnp.array([t, t_prev]))
    cur, nxt = (Level(*(field[i] for field in levels)) for i in (0, 1))
    state, _ = OURS[sampler].step(
        SamplerState(jnp.asarray(x_t)), noise, cur, nxt, lambda x, level: Prediction(x_0, eps)
    )
    kind, setting = sampler.split()
    a, b, c, d = map(to_torch, (x_t, x_0, eps, noise))
    if kind == "ddpm":
        expected = ref.ddpm_step(theirs, a, t, t_prev, b, d, setting)
    else:
        expected = ref.ddim_step(theirs, a, t, t_prev, b, c, d, float(setting))
    compare("one sampler step", state.x_t, to_jax(expected), dtype)


@pytest.mark.parametrize(
    ("what", "sampler", "num_steps", "schedule", "prediction_type"),
    [
        ("chain of 1000 ancestral steps", "ddpm fixed_large", 1000, "linear", "eps"),
        pytest.param(
            *("chain of 1000 ancestral steps", "ddpm fixed_small", 1000, "cosine", "v"),
            marks=pytest.mark.slow,
        ),
        ("chain of 50 DDIM steps", "ddim 0.0", 50, "linear", "eps"),
        ("chain of 50 DDIM steps", "ddim 1.0", 50, "cosine", "v"),
    ],
)
def test_whole_chain_through_the_same_network(
    compare, dtype, what, sampler, num_steps, schedule, prediction_type
):
    model, network, params = twin_networks(dtype, seed=1)
    ours, theirs = schedules(dtype, schedule)
    grid = timestep_grid(1000, num_steps)
    x_T, noises = draws(SHAPE, dtype, 0), draws((num_steps, *SHAPE), dtype, 1)

    @jax.jit
    def run(params, x_T, noises):
        denoise_fn = make_denoise_fn(network.apply_fn, params, prediction_type=prediction_type)
        levels = level_at(ours, jnp.asarray(grid))
        return sample(OURS[sampler], denoise_fn, levels, x_T, lambda i: noises[i], trace=keep_x_t)

    x_0, trajectory = run(params, x_T, noises)
    kind, setting = sampler.split()
    settings = {"variance": setting} if kind == "ddpm" else {"eta": float(setting)}
    expected, steps = ref.sample(
        model, theirs, grid.tolist(), to_torch(x_T), [to_torch(n) for n in noises],
        sampler=kind, prediction_type=prediction_type, **settings,
    )  # fmt: skip
    compare(what, x_0, to_jax(expected), dtype)
    compare(what, np.asarray(trajectory), np.stack([to_jax(x) for x in steps[1:]]), dtype)
