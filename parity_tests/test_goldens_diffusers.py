"""Recorded numbers of diffusers: schedulers with a toy denoiser, and UNet2DModel."""

import jax.numpy as jnp
import numpy as np
import pytest
from parity import DOUBLE_FIRST, SHORT, check_recorded_unet, golden, nchw_to_nhwc, toy_denoiser

from jax_ddpm.denoiser import make_denoise_fn
from jax_ddpm.diffusion import q_sample, v_from
from jax_ddpm.models import UNet
from jax_ddpm.samplers import ddim, ddpm, sample
from jax_ddpm.schedules import BETAS, level_at, make_schedule, timestep_grid

THEIRS = "diffusers (recorded)"

SCHEDULES = {
    "linear": ("linear", 1000),
    "cos": ("cosine", 1000),
    "scaled_linear_T200": ("quadratic", 200),
    "sigmoid_T200": ("sigmoid", 200),
}
BETA_SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}

# Recorded runs that use an option beyond the two samplers here, or a known fault of the peer:
# noise at the last step where it is not t = 0 (trailing and offset), previous timesteps that are
# t - T // S whatever the spacing is (trailing with 7 steps, linspace), no clean image at the end
# (alpha0, offset), other thresholding, learned variance, rescaled betas.
DDPM_RUNS = [
    "linear_eps_small_clip", "linear_eps_large_clip", "linear_eps_small_noclip",
    "cos_eps_small_clip", "cos_v_large_clip", "linear_x0_small_clip", "linear_v_small_noclip", "linear_eps_small_log",
    "linear_linspace", "T50_full",
]  # fmt: skip
DDIM_RUNS = [
    "leading_eta0", "leading_eta1", "trailing_eta0", "noclip_eta0", "useclipped_eta05", "cos_v",
]  # fmt: skip


@pytest.mark.parametrize("tag", SCHEDULES)
def test_schedule(compare, dtype, tag):
    """diffusers computes its tables in float32, ours are rounded once."""
    _, io = golden("diffusers/sched_ddpm_tables")
    name, num_timesteps = SCHEDULES[tag]
    schedule = make_schedule(BETAS[name](num_timesteps), dtype=dtype)
    for table in ("betas", "alphas_cumprod"):
        recorded = io[f"{SHORT[dtype]}.{tag}/{table}"]
        compare("diffusers' tables", getattr(schedule, table), recorded, dtype)


@pytest.mark.parametrize("tag", ["linear", "cos"])
def test_add_noise_and_velocity(compare, dtype, tag):
    _, io = golden("diffusers/sched_ddpm_tables")
    schedule = make_schedule(BETAS[SCHEDULES[tag][0]](1000), dtype=dtype)
    x_0, noise = (nchw_to_nhwc(a).astype(dtype) for a in (io["in.x_init"], io["in.noise"][0]))
    t = jnp.asarray(io["in.t"])
    ours = q_sample(schedule, x_0, t, noise), v_from(level_at(schedule, t), x_0, noise)
    for mine, name in zip(ours, ("add_noise", "velocity"), strict=True):
        recorded = nchw_to_nhwc(io[f"{SHORT[dtype]}.{tag}/{name}"])
        compare("q_sample", mine, recorded, dtype)


def run_chain(settings, sampler, io, dtype, rederive_eps):
    """The settings are arguments of the peer's scheduler, under its names."""
    num_timesteps = settings.get("num_train_timesteps", 1000)
    name = BETA_SCHEDULES[settings.get("beta_schedule", "linear")]
    schedule = make_schedule(BETAS[name](num_timesteps), dtype=dtype)
    spacing = settings.get("timestep_spacing", "leading")
    grid = timestep_grid(num_timesteps, settings["steps"], spacing)
    denoise_fn = make_denoise_fn(
        toy_denoiser,
        None,
        prediction_type=PREDICTIONS[settings.get("prediction_type", "epsilon")],
        clip_x_0=settings.get("clip_sample", True),
        rederive_eps=rederive_eps,
    )
    x_T, noises = (nchw_to_nhwc(a).astype(dtype) for a in (io["in.x_init"], io["in.noise"]))
    noises = jnp.asarray(noises)
    levels = level_at(schedule, jnp.asarray(grid))
    _, (x_t, x_0) = sample(
        sampler, denoise_fn, levels, jnp.asarray(x_T), lambda i: noises[i],
        trace=lambda state, prediction: (state.x_t, prediction.x_0),
    )  # fmt: skip
    return grid[:-1], np.concatenate([x_T[None], x_t]), x_0


def check_chain(compare, dtype, case, tag, sampler_of):
    manifest, io = golden(case)
    (settings,) = (run for run in manifest["config"]["runs"] if run["tag"] == tag)
    rederive_eps = settings.get("use_clipped_model_output", False)
    grid, x_t, x_0 = run_chain(settings, sampler_of(settings), io, dtype, rederive_eps)
    assert grid.tolist() == io[f"both.{tag}/timesteps"].tolist()
    recorded = [nchw_to_nhwc(io[f"{SHORT[dtype]}.{tag}/{name}"]) for name in ("traj", "x0")]
    compare("recorded chains", [x_t, x_0], recorded, dtype)


@pytest.mark.parametrize("tag", DDPM_RUNS)
def test_ddpm_chain(compare, dtype, tag):
    def sampler_of(settings):
        return ddpm(settings.get("variance_type", "fixed_small").removesuffix("_log"))

    check_chain(compare, dtype, "diffusers/sched_ddpm", tag, sampler_of)


@pytest.mark.parametrize("tag", DDIM_RUNS)
def test_ddim_chain(compare, dtype, tag):
    def sampler_of(settings):
        return ddim(settings.get("eta", 0.0))

    check_chain(compare, dtype, "diffusers/sched_ddim", tag, sampler_of)


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
def test_unet(compare, dtype):
    module = UNet(channels=8, num_groups=8, dropout=0.0, dtype=dtype)
    check_recorded_unet(
        compare, dtype, "diffusers/unet_cifar_style", module, "diffusers", nchw_to_nhwc
    )
