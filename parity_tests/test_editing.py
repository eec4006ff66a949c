"""RePaint beside diffusers' RePaintScheduler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.grids import timestep_grid
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.schedules import linear_betas, make_schedule
from jax_ddpm.samplers import SamplerState, ddim
from jax_ddpm.samplers.editing import inpaint, renoise, repaint_grid
from parity_tests.comparing import nchw_to_nhwc

diffusers = pytest.importorskip("diffusers")
THEIRS = "diffusers (live)"
T = 50
BETAS = linear_betas(T, rescale=True)


def make_scheduler(eta, clip, num_steps=T, **jumps):
    made = diffusers.RePaintScheduler(T, trained_betas=BETAS, eta=eta, clip_sample=clip)
    made.set_timesteps(num_steps, **jumps)
    return made


@pytest.mark.parametrize("settings", [(50, 10, 10), (25, 3, 4), (10, 2, 2), (50, 1, 3)])
def test_grid(settings):
    """diffusers leaves out the clean image at the end; its timesteps are multiples of T // S."""
    num_steps, jump, resample = settings
    theirs = make_scheduler(0, True, num_steps, jump_length=jump, jump_n_sample=resample).timesteps
    ours = repaint_grid(timestep_grid(T, num_steps, "leading"), jump, resample)
    assert ours.tolist() == [*theirs.tolist(), -1]


def to_nchw(array):
    return torch.tensor(np.moveaxis(np.asarray(array), -1, 1))


def network(params, x_t, t):
    return 0.5 * x_t + 0.2 * jnp.sin(x_t) + 0.01 * t.reshape(-1, 1, 1, 1).astype(x_t.dtype)


@pytest.mark.parametrize(("eta", "clip"), [(1.0, False), (0.0, False), (0.4, True)])
def test_one_step(compare, monkeypatch, eta, clip):
    """Known and new pixels after a step; diffusers keeps the network's eps after clipping."""
    rng = np.random.default_rng(0)
    x_t, noise, image = rng.standard_normal((3, 2, 4, 5, 3))
    known = rng.random((1, 4, 5, 1)) < 0.5
    made, schedule = make_scheduler(eta, clip), make_schedule(BETAS, dtype="float64")
    denoise = make_denoise_fn(network, None, clip_x_0=clip, rederive_eps=False)
    sampler = inpaint(ddim(eta), jnp.asarray(image), jnp.asarray(known))
    module = "diffusers.schedulers.scheduling_repaint.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **kwargs: to_nchw(noise))
    for t in (T - 1, 20, 1):
        output = network(None, jnp.asarray(x_t), jnp.full(2, t))
        theirs = made.step(
            to_nchw(output), t, to_nchw(x_t), to_nchw(image), to_nchw(known).double()
        ).prev_sample
        cur, nxt = (level_at(schedule, jnp.array(s)) for s in (t, t - 1))
        state = SamplerState(jnp.asarray(x_t))
        ours = sampler.step(state, jnp.asarray(noise), cur, nxt, denoise)[0].x_t
        compare("one sampler step", ours, nchw_to_nhwc(theirs.numpy()), "float64")


def test_one_step_up(compare, monkeypatch):
    """diffusers adds noise one beta at a time, starting after the level it has reached."""
    rng = np.random.default_rng(1)
    x, noise = rng.standard_normal((2, 2, 4, 5, 3))
    made, schedule = make_scheduler(1.0, True), make_schedule(BETAS, dtype="float64")
    module = "diffusers.schedulers.scheduling_repaint.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **kwargs: to_nchw(noise))
    for t in (0, 7, T - 1):
        cur, nxt = (level_at(schedule, jnp.array(s)) for s in (t - 1, t))
        ours = jax.jit(renoise)(cur, nxt, jnp.asarray(x), jnp.asarray(noise))
        theirs = made.undo_step(to_nchw(x), t)
        compare("one sampler step", ours, nchw_to_nhwc(theirs.numpy()), "float64")
