"""The installed diffusers package beside ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.schedulers.scheduling_ddpm import (
    rescale_zero_terminal_snr as rescale_in_diffusers,
)

from jax_ddpm.interop import PEERS, from_state_dict
from jax_ddpm.models import UNetConfig, make_network
from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.grids import timestep_grid
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.schedules import BETAS, linear_betas, make_schedule, rescale_zero_terminal_snr
from jax_ddpm.samplers import ddim, ddpm, sample
from parity_tests.comparing import draws, to_jax, to_torch

THEIRS = "diffusers (live)"
SIZE = 16
SHAPE = (2, SIZE, SIZE, 3)


@pytest.fixture(scope="module")
def models():
    """A small UNet2DModel built like google/ddpm-cifar10-32, and ours with its weights."""
    torch.manual_seed(0)
    theirs = UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=4,
        attention_head_dim=None,
    ).eval()
    config = UNetConfig(
        channels=8, channel_mult=(1, 2), num_res_blocks=1, num_groups=4, dropout=0.0
    )
    network = make_network(config, SHAPE[1:])
    like = jax.eval_shape(network.init, jax.random.key(0))
    weights = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    return theirs, network.apply_fn, from_state_dict(weights, PEERS["diffusers"], like)


def test_unet(compare, models):
    theirs, apply_fn, params = models
    x, t = draws(SHAPE, "float32", 0), np.array([7, 901])
    with torch.no_grad():
        expected = theirs(to_torch(x), to_torch(t)).sample
    compare("U-Net", jax.jit(apply_fn)(params, x, jnp.asarray(t)), to_jax(expected), "float32")


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_chain_through_the_same_network(compare, monkeypatch, models, kind):
    """25 steps: their scheduler with their network, our sampler with ours."""
    theirs, apply_fn, params = models
    x_T, noises = draws(SHAPE, "float32", 1), draws((25, *SHAPE), "float32", 2)
    schedule = make_schedule(linear_betas(1000))
    denoise_fn = make_denoise_fn(apply_fn, params)
    sampler = ddpm("fixed_large") if kind == "ddpm" else ddim(0.5)

    @jax.jit
    def run(x_T, noises):
        levels = level_at(schedule, jnp.asarray(timestep_grid(1000, 25, "leading")))
        return sample(sampler, denoise_fn, levels, x_T, lambda i: noises[i])[0]

    x, step = to_torch(x_T), {}
    if kind == "ddpm":
        scheduler = DDPMScheduler(variance_type="fixed_large")
        queue = iter(noises)
        fake = lambda *args, **kwargs: to_torch(next(queue))  # noqa: E731
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", fake)
    else:
        scheduler = DDIMScheduler()
        step = {"eta": 0.5, "use_clipped_model_output": True}
    scheduler.set_timesteps(25)
    for i, t in enumerate(scheduler.timesteps):
        if kind == "ddim":
            step["variance_noise"] = to_torch(noises[i])
        with torch.no_grad():
            output = theirs(x, t).sample
        x = scheduler.step(output, t, x, **step).prev_sample
    compare("chain of 25 steps", run(x_T, noises), to_jax(x), "float32")


@pytest.mark.parametrize(("name", "T"), [("linear", 1000), ("cosine", 1000), ("quadratic", 40)])
def test_rescaling_to_zero_terminal_snr(compare, name, T):
    betas = BETAS[name](T)
    expected = rescale_in_diffusers(torch.from_numpy(betas)).numpy()
    compare("diffusers' tables", rescale_zero_terminal_snr(betas), expected, "float64")
