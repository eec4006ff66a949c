"""Recorded numbers of diffusers: schedulers with a toy denoiser, and UNet2DModel."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.models import UNetConfig
from jax_ddpm.process.denoiser import make_denoise_fn, threshold
from jax_ddpm.process.diffusion import q_sample
from jax_ddpm.process.grids import timestep_grid
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.predictions import v_from
from jax_ddpm.process.schedules import (
    BETAS,
    make_schedule,
    named_schedule,
    rescale_zero_terminal_snr,
)
from jax_ddpm.samplers import ddim, ddpm, sample
from parity_tests.comparing import (
    DOUBLE_FIRST,
    SHORT,
    check_recorded_unet,
    nchw_to_nhwc,
    read_golden,
    toy_denoiser,
)

THEIRS = "diffusers (recorded)"

SCHEDULES = {
    "linear": ("linear", 1000),
    "cos": ("cosine", 1000),
    "scaled_linear_T200": ("quadratic", 200),
    "sigmoid_T200": ("sigmoid", 200),
    "zero_snr": ("linear", 1000),
}
BETA_SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}

DDPM_RUNS = [
    "linear_eps_small_clip",
    "linear_eps_large_clip",
    "linear_eps_small_noclip",
    "cos_eps_small_clip",
    "cos_v_large_clip",
    "linear_x0_small_clip",
    "linear_v_small_noclip",
    "linear_eps_learnedrange",
    "linear_eps_small_log",
    "linear_trailing",
    "linear_linspace",
    "leading_offset1",
    "dynamic_threshold",
    "zero_snr_v_trailing",
    "T50_full",
]
DDIM_RUNS = [
    "leading_eta0",
    "leading_eta1",
    "trailing_eta0",
    "noclip_eta0",
    "useclipped_eta05",
    "cos_v",
    "zero_snr_v",
    "linspace_eta0",
    "trailing_eta1",
    "alpha0_eta0",
    "cos_x0_offset1",
]
# They step from t to t - T // S, which is not the next timestep of these grids.
UNCHAINED = {"linspace_eta0", "trailing_eta1", "alpha0_eta0", "cos_x0_offset1"}
# Their last step adds noise of variance 1e-20 unless it starts from t = 0.
LAST_NOISE = {"linear_trailing", "leading_offset1", "zero_snr_v_trailing"}


@pytest.mark.parametrize("tag", SCHEDULES)
def test_schedule(compare, dtype, tag):
    """diffusers computes its tables in float32; ours are rounded once."""
    _, io = read_golden("diffusers/sched_ddpm_tables")
    name, num_timesteps = SCHEDULES[tag]
    zero = tag == "zero_snr"
    schedule = named_schedule(name, num_timesteps, dtype=dtype, zero_terminal_snr=zero)
    for table in ("betas", "alphas_cumprod"):
        recorded = io[f"{SHORT[dtype]}.{tag}/{table}"]
        compare("diffusers' tables", getattr(schedule, table), recorded, dtype)


@pytest.mark.parametrize("tag", ["linear", "cos", "zero_snr"])
def test_add_noise_and_velocity(compare, dtype, tag):
    _, io = read_golden("diffusers/sched_ddpm_tables")
    name, zero = SCHEDULES[tag][0], tag == "zero_snr"
    schedule = named_schedule(name, 1000, dtype=dtype, zero_terminal_snr=zero)
    x_0, noise = (
        jnp.asarray(nchw_to_nhwc(a).astype(dtype)) for a in (io["in.x_init"], io["in.noise"][0])
    )
    t = jnp.asarray(io["in.t"])
    ours = q_sample(schedule, x_0, t, noise), v_from(level_at(schedule, t), x_0, noise)
    for mine, name in zip(ours, ("add_noise", "velocity"), strict=True):
        recorded = nchw_to_nhwc(io[f"{SHORT[dtype]}.{tag}/{name}"])
        compare("q_sample", mine, recorded, dtype)


def find_levels(settings, t, dtype):
    """The noise levels of timesteps t under the settings of one of their schedulers."""
    num_timesteps = settings.get("num_train_timesteps", 1000)
    betas = BETAS[BETA_SCHEDULES[settings.get("beta_schedule", "linear")]](num_timesteps)
    if settings.get("rescale_betas_zero_snr"):
        betas = rescale_zero_terminal_snr(betas)
    return level_at(make_schedule(betas, dtype=dtype), jnp.asarray(t))


def make_grid(settings):
    """The timesteps that they visit, followed by -1."""
    num_timesteps = settings.get("num_train_timesteps", 1000)
    spacing = settings.get("timestep_spacing", "leading")
    grid = timestep_grid(num_timesteps, settings["steps"], spacing)
    return np.where(grid < 0, grid, grid + settings.get("steps_offset", 0))


def learned_denoiser(params, x, t):
    """The toy denoiser and the toy variance."""
    raw = 0.8 * jnp.tanh(x + 0.01 * t.astype(x.dtype)[:, None, None, None])
    return jnp.concatenate([toy_denoiser(params, x, t), raw], axis=-1)


def add_threshold(denoise_fn, ratio, ceiling):
    """Add a threshold on x_0, of at most `ceiling`, to a denoiser."""

    def denoise(x_t, level):
        prediction = denoise_fn(x_t, level)
        return prediction._replace(x_0=threshold(prediction.x_0, ratio, ceiling))

    return denoise


def build_denoise_fn(settings):
    """Build the denoiser inside their scheduler from the scheduler's arguments."""
    learned = settings.get("variance_type") == "learned_range"
    denoise_fn = make_denoise_fn(
        learned_denoiser if learned else toy_denoiser,
        None,
        prediction_type=PREDICTIONS[settings.get("prediction_type", "epsilon")],
        clip_x_0=settings.get("clip_sample", True),
        rederive_eps=settings.get("use_clipped_model_output", False),
        learned_variance=learned,
    )
    if settings.get("thresholding"):
        ratio = settings["dynamic_thresholding_ratio"]
        return add_threshold(denoise_fn, ratio, settings["sample_max_value"])
    return denoise_fn


def run_chain(settings, sampler, grid, x_T, noises):
    """(x_t after each step, x_0 predicted in each step)."""
    _, trajectory = sample(
        sampler,
        build_denoise_fn(settings),
        find_levels(settings, grid, x_T.dtype),
        x_T,
        lambda i: noises[i],
        trace=lambda state, prediction: (state.x_t, prediction.x_0),
    )
    return trajectory


def run_steps(settings, sampler, grid, x_T, noises):
    """Like `run_chain`, but each step leads to the timestep that diffusers takes for the next."""
    before = grid[:-1] - 1000 // settings["steps"]
    end = -1 if settings.get("set_alpha_to_one", True) else 0
    before = np.where(before < 0, end, before)
    state, trajectory = sampler.init(x_T), []
    denoise_fn = build_denoise_fn(settings)
    for i, t in enumerate(zip(grid[:-1], before, strict=True)):
        cur, nxt = (find_levels(settings, np.asarray(number), x_T.dtype) for number in t)
        state, prediction = sampler.step(state, noises[i], cur, nxt, denoise_fn)
        trajectory.append((state.x_t, prediction.x_0))
    return [jnp.stack(arrays) for arrays in zip(*trajectory, strict=True)]


def check_chain(compare, dtype, case, tag, make_sampler):
    manifest, io = read_golden(case)
    (settings,) = (run for run in manifest["config"]["runs"] if run["tag"] == tag)
    grid = make_grid(settings)
    assert grid[:-1].tolist() == io[f"both.{tag}/timesteps"].tolist()
    x_T, noises = (
        jnp.asarray(nchw_to_nhwc(a).astype(dtype)) for a in (io["in.x_init"], io["in.noise"])
    )
    run = run_steps if tag in UNCHAINED else run_chain
    x_t, x_0 = run(settings, make_sampler(settings), grid, x_T, noises)
    if tag in LAST_NOISE:
        x_t = x_t.at[-1].add(1e-10 * noises[len(x_t) - 1])
    recorded = [nchw_to_nhwc(io[f"{SHORT[dtype]}.{tag}/{name}"]) for name in ("traj", "x0")]
    compare("recorded chains", [jnp.concatenate([x_T[None], x_t]), x_0], recorded, dtype)


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize("tag", DDPM_RUNS)
def test_ddpm_chain(compare, dtype, tag):
    def make_sampler(settings):
        return ddpm(settings.get("variance_type", "fixed_small").removesuffix("_log"))

    check_chain(compare, dtype, "diffusers/sched_ddpm", tag, make_sampler)


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize("tag", DDIM_RUNS)
def test_ddim_chain(compare, dtype, tag):
    def make_sampler(settings):
        return ddim(settings.get("eta", 0.0))

    check_chain(compare, dtype, "diffusers/sched_ddim", tag, make_sampler)


@pytest.mark.parametrize("case", ["ddpm", "ddim"])
def test_every_recorded_chain_is_compared(case):
    manifest, _ = read_golden(f"diffusers/sched_{case}")
    runs = {"ddpm": DDPM_RUNS, "ddim": DDIM_RUNS}[case]
    assert sorted(runs) == sorted(run["tag"] for run in manifest["config"]["runs"])


@pytest.mark.slow
def test_unet(compare, dtype):
    config = UNetConfig(channels=8, num_groups=8, dropout=0.0)
    check_recorded_unet(
        compare, dtype, "diffusers/unet_cifar_style", config, "diffusers", nchw_to_nhwc
    )
