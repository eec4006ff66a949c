"""The installed diffusers' solvers in double precision beside ours, with a toy denoiser."""

import importlib
import sys
from types import ModuleType

import diffusers.schedulers  # noqa: F401 - it looks for torchsde, which a test then replaces
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.grids import CONTINUOUS, timestep_grid
from jax_ddpm.process.levels import Level, append_clean_image, level_at
from jax_ddpm.process.schedules import linear_betas, make_schedule
from jax_ddpm.samplers import ddim, ddim_inverse, dpmpp_2m_inverse, ipndm
from parity_tests.comparing import draws, to_jax, to_torch, toy_denoiser
from parity_tests.recorded_solvers import (
    SCALED,
    build_schedule,
    choose_sampler,
    drop_inner_timesteps,
    find_levels,
    find_step_ends,
    make_denoiser,
    walk,
)

THEIRS = "diffusers (live)"
SHAPE = (2, 4, 4, 3)
MODULES = {
    "DPM": ("dpmsolver_multistep", "DPMSolverMultistepScheduler"),
    "DPMS": ("dpmsolver_singlestep", "DPMSolverSinglestepScheduler"),
    "UniPC": ("unipc_multistep", "UniPCMultistepScheduler"),
    "Euler": ("euler_discrete", "EulerDiscreteScheduler"),
    "EulerA": ("euler_ancestral_discrete", "EulerAncestralDiscreteScheduler"),
    "Heun": ("heun_discrete", "HeunDiscreteScheduler"),
    "PNDM": ("pndm", "PNDMScheduler"),
    "DEIS": ("deis_multistep", "DEISMultistepScheduler"),
    "LMS": ("lms_discrete", "LMSDiscreteScheduler"),
    "IPNDM": ("ipndm", "IPNDMScheduler"),
    "KDPM2": ("k_dpm_2_discrete", "KDPM2DiscreteScheduler"),
    "KDPM2A": ("k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscreteScheduler"),
    "DPMSDE": ("dpmsolver_sde", "DPMSolverSDEScheduler"),
    "SA": ("sasolver", "SASolverScheduler"),
    "DPMInverse": ("dpmsolver_multistep_inverse", "DPMSolverMultistepInverseScheduler"),
    "EDMEuler": ("edm_euler", "EDMEulerScheduler"),
    "EDMDPM": ("edm_dpmsolver_multistep", "EDMDPMSolverMultistepScheduler"),
    "DDIM": ("ddim", "DDIMScheduler"),
    "DDIMInverse": ("ddim_inverse", "DDIMInverseScheduler"),
}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
V, X_0 = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
TRAILING, LEADING = {"timestep_spacing": "trailing"}, {"timestep_spacing": "leading"}


def make_settings(family, steps, *parts, **more):
    """Collect a family of schedulers, the number of steps, and the scheduler's arguments."""
    merged = {k: v for part in parts for k, v in part.items()}
    return {"family": family, "steps": steps, **merged, **more}


RUNS = {
    "2M, 20 steps, trailing": make_settings("DPM", 20, TRAILING),
    "2M, 1 step": make_settings("DPM", 1, TRAILING),
    "2M, x_0, cosine": make_settings("DPM", 12, X_0, COSINE),
    "2M, heun, karras": make_settings("DPM", 9, solver_type="heun", use_karras_sigmas=True),
    "3M, 16 steps, v": make_settings("DPM", 16, V, solver_order=3),
    "3M, 7 steps, trailing": make_settings("DPM", 7, TRAILING, solver_order=3),
    "3M, sigma_min": make_settings("DPM", 9, solver_order=3, final_sigmas_type="sigma_min"),
    "SDE, heun, trailing": make_settings(
        "DPM", 8, TRAILING, solver_type="heun", algorithm_type="sde-dpmsolver++"
    ),
    "SDE, cosine, v": make_settings("DPM", 17, COSINE, V, algorithm_type="sde-dpmsolver++"),
    "2S, 9 steps, cosine": make_settings("DPMS", 9, COSINE),
    "2S, 12 steps, v": make_settings("DPMS", 12, V),
    "UniPC, order 3": make_settings("UniPC", 10, solver_order=3),
    "UniPC, order 3, 20 steps, trailing": make_settings("UniPC", 20, TRAILING, solver_order=3),
    "UniPC, leading, v": make_settings("UniPC", 8, LEADING, V),
    "UniPC, cosine, x_0": make_settings("UniPC", 15, COSINE, X_0),
    "UniPC, karras": make_settings("UniPC", 6, use_karras_sigmas=True),
    "Euler, trailing, v": make_settings("Euler", 7, TRAILING, V),
    "Euler ancestral, leading, v": make_settings("EulerA", 8, LEADING, V),
    "Euler ancestral, trailing": make_settings("EulerA", 6, TRAILING),
    "Heun, trailing": make_settings("Heun", 7, TRAILING),
    "Heun, v, cosine": make_settings("Heun", 5, V, COSINE),
    # No v: they mix the outputs of several levels before they convert the mixture to eps. No odd
    # stride: their Runge-Kutta steps then use one middle for x_t and another for the network.
    "PNDM, clean": make_settings("PNDM", 20, set_alpha_to_one=True),
    "PNDM, cosine": make_settings("PNDM", 25, COSINE),
    "PLMS, clean": make_settings("PNDM", 8, skip_prk_steps=True, set_alpha_to_one=True),
    "PLMS, cosine": make_settings("PNDM", 20, COSINE, skip_prk_steps=True),
    "DEIS, order 2, trailing": make_settings("DEIS", 9, TRAILING),
    "DEIS, order 3, v": make_settings("DEIS", 16, V, solver_order=3),
    "DEIS, order 3, 6 steps": make_settings("DEIS", 6, solver_order=3),
    "LMS, trailing": make_settings("LMS", 9, TRAILING),
    "LMS, v, cosine": make_settings("LMS", 7, V, COSINE),
    "LMS, x_0, karras": make_settings("LMS", 7, X_0, use_karras_sigmas=True),
    "KDPM2, trailing": make_settings("KDPM2", 7, TRAILING),
    "KDPM2, v, cosine": make_settings("KDPM2", 5, V, COSINE),
    "KDPM2 ancestral, trailing": make_settings("KDPM2A", 6, TRAILING),
    "KDPM2 ancestral, leading, v": make_settings("KDPM2A", 5, LEADING, V),
    "DPM SDE, trailing": make_settings("DPMSDE", 6, TRAILING),
    "DPM SDE, v, karras": make_settings("DPMSDE", 5, V, use_karras_sigmas=True),
    "SA, trailing": make_settings("SA", 9, TRAILING),
    "SA, orders 3 and 3, v, cosine": make_settings(
        "SA", 9, V, COSINE, predictor_order=3, corrector_order=3
    ),
    "SA, orders 3 and 2": make_settings("SA", 12, predictor_order=3),
    "SA, orders 1 and 2, x_0": make_settings("SA", 5, X_0, predictor_order=1),
}
FIRST = (
    "SDE, heun, trailing",
    "UniPC, order 3",
    "DEIS, order 3, 6 steps",
    "LMS, trailing",
    "DPM SDE, trailing",
    "SA, trailing",
)


class Doubled:
    """A module whose float32 is float64, because their schedulers cast to float32."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return getattr(self.module, "float64" if name == "float32" else name)


def make_scheduler(monkeypatch, settings):
    """Make one of their schedulers compute in double precision."""
    module, name = MODULES[settings["family"]]
    if settings["family"] == "DPMSDE":  # torchsde draws its noise, which the test replaces
        monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    module = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
    monkeypatch.setattr(module, "torch", Doubled(torch))
    monkeypatch.setattr(module, "np", Doubled(np), raising=False)  # some have none
    arguments = {k: v for k, v in settings.items() if k not in ("family", "steps")}
    return getattr(module, name)(**arguments), module


def denoise_in_torch(x, t):
    """The toy denoiser in PyTorch."""
    return 0.5 * x + 0.2 * torch.sin(x) + 0.05 * torch.cos(t.to(x.dtype) / 100)


def run_theirs(scheduler, steps, x, **step):
    """Run their scheduler on its own grid; return x at the start and after each call."""
    scheduler.set_timesteps(steps)
    trajectory = [x]
    for t in scheduler.timesteps:
        output = denoise_in_torch(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **step).prev_sample
        trajectory.append(x)
    return np.stack([to_jax(x) for x in trajectory])


@pytest.fixture
def double():
    """Make float64 PyTorch's default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FIRST else pytest.mark.slow) for n in RUNS]
)
def test_solver(compare, monkeypatch, double, name):
    settings = RUNS[name]
    scheduler, module = make_scheduler(monkeypatch, settings)
    x_T, noises = draws(SHAPE, "float64", 1), draws((settings["steps"], *SHAPE), "float64", 2)
    if settings["family"] == "DPMSDE":  # both calls of a step get its noise
        twice = iter(np.repeat(noises, 2, axis=0))
        tree = lambda *args: lambda *times: to_torch(next(twice))  # noqa: E731
        monkeypatch.setattr(module, "BrownianTreeNoiseSampler", tree)
    if hasattr(module, "randn_tensor"):
        queue = iter(noises)
        fake = lambda *args, **kwargs: to_torch(next(queue))  # noqa: E731
        monkeypatch.setattr(module, "randn_tensor", fake)
    theirs = run_theirs(scheduler, settings["steps"], to_torch(x_T))
    schedule = build_schedule(settings, "float64")
    timesteps = drop_inner_timesteps(settings, scheduler.timesteps.numpy())
    sigmas = scheduler.sigmas.numpy() if hasattr(scheduler, "sigmas") else None
    levels = find_levels(settings, schedule, timesteps, sigmas)
    scaled = settings["family"] in SCALED
    scale = levels.signal if scaled else jnp.ones_like(levels.signal)
    sampler, denoise_fn = choose_sampler(settings, schedule), make_denoiser(settings)
    x_t, _ = walk(sampler, denoise_fn, levels, x_T * scale[0], noises)
    x_t /= scale[1:].reshape(-1, 1, 1, 1, 1)
    calls = find_step_ends(settings, len(theirs) - 1)
    compare("diffusers' solvers", x_t, theirs[1:][calls], "float64")


@pytest.mark.parametrize("clip", [False, True])
def test_inverse_ddim(compare, monkeypatch, double, clip):
    scheduler, _ = make_scheduler(
        monkeypatch, {"family": "DDIMInverse", "steps": 25, "clip_sample": clip}
    )
    x_0 = draws(SHAPE, "float64", 3)
    theirs = run_theirs(scheduler, 25, to_torch(x_0))
    levels = level_at(
        make_schedule(linear_betas(1000), dtype="float64"),
        jnp.asarray(timestep_grid(1000, 25, "leading")[::-1].copy()),
    )
    denoise_fn = make_denoiser({})
    if clip:
        denoise_fn = make_denoise_fn(
            lambda params, x, t: denoise_in_jax(x, t), None, rederive_eps=False
        )
    x_t, _ = walk(ddim_inverse(clip_x_0=clip), denoise_fn, levels, x_0, np.zeros((25, *SHAPE)))
    compare("diffusers' solvers", x_t, theirs[1:], "float64")


@pytest.mark.parametrize(
    "settings",
    [
        make_settings("DPMInverse", 9),
        pytest.param(make_settings("DPMInverse", 16, V, COSINE), marks=pytest.mark.slow),
        pytest.param(make_settings("DPMInverse", 6, solver_type="heun"), marks=pytest.mark.slow),
    ],
    ids=["9 steps", "16 steps, v, cosine", "6 steps, heun"],
)
def test_inverse_multistep(compare, monkeypatch, double, settings):
    """Theirs begins at the level of t = 0, so ours does too."""
    scheduler, _ = make_scheduler(monkeypatch, settings)
    x_0, num_steps = draws(SHAPE, "float64", 6), settings["steps"]
    theirs = run_theirs(scheduler, num_steps, to_torch(x_0))
    t = np.append(scheduler.timesteps.numpy(), 999)
    levels = level_at(build_schedule(settings, "float64"), jnp.asarray(t))
    correction = settings.get("solver_type", "midpoint")
    sampler = dpmpp_2m_inverse(correction=correction, num_steps=num_steps)
    noises = np.zeros((num_steps, *SHAPE))
    x_t, _ = walk(sampler, make_denoiser(settings), levels, jnp.asarray(x_0), noises)
    compare("diffusers' solvers", x_t, theirs[1:], "float64")


EDM_RUNS = {
    "Euler": make_settings("EDMEuler", 8, {"prediction_type": "epsilon"}),
    "2M": make_settings("EDMDPM", 16, V),
    "3M": make_settings("EDMDPM", 9, V, solver_order=3, sigma_data=1.2),
    "SDE": make_settings("EDMDPM", 7, V, algorithm_type="sde-dpmsolver++"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "2M" else pytest.mark.slow) for n in EDM_RUNS]
)
def test_edm_schedulers_are_our_samplers_for_scaled_data(compare, monkeypatch, double, name):
    """Their preconditioned network is one that predicts v of the data over sigma_data.

    Their x is x_0 + sigma noise, and ours is signal / sigma_data times that, where sigma / signal is
    their sigma / sigma_data. It is also what their network sees. Their t is log(sigma) / 4, and
    their "epsilon" is -v.
    """
    settings = EDM_RUNS[name]
    scheduler, module = make_scheduler(monkeypatch, settings)
    x_T, noises = draws(SHAPE, "float64", 7), draws((settings["steps"], *SHAPE), "float64", 8)
    queue = iter(noises)
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: to_torch(next(queue)))
    theirs = run_theirs(scheduler, settings["steps"], to_torch(80 * x_T))
    log_sigmas = np.log(scheduler.sigmas.numpy()[:-1])
    grid = CONTINUOUS["karras"](log_sigmas[::-1], settings["steps"])
    compare("grids", grid, log_sigmas, "float64")
    scale = settings.get("sigma_data", 0.5)
    t = scheduler.timesteps.numpy()
    levels = append_clean_image(t, np.exp(grid) / scale, "float64")
    start = jnp.asarray(80 * x_T / scale) * levels.signal[0]
    sign = -1 if settings["prediction_type"] == "epsilon" else 1
    denoise_fn = make_denoiser(V, lambda *args: sign * toy_denoiser(*args))
    x_t, _ = walk(choose_sampler(settings, None), denoise_fn, levels, start, noises)
    x_t *= scale / levels.signal[1:].reshape(-1, 1, 1, 1, 1)
    compare("diffusers' solvers", x_t, theirs[1:], "float64")


def test_ipndm(compare, monkeypatch, double):
    """Their network predicts v, and their t is the angle of the level in units of pi / 2."""
    sigmas = np.append(np.sin(np.linspace(1.5, 0.1, 9)), 0)
    settings = {"family": "IPNDM", "steps": 9, "trained_betas": list(sigmas), **V}
    scheduler, _ = make_scheduler(monkeypatch, {k: settings[k] for k in settings if k not in V})
    x_T = draws(SHAPE, "float64", 5)
    theirs = run_theirs(scheduler, 9, to_torch(x_T))
    t = np.append(scheduler.timesteps.numpy(), -1)
    levels = Level(*map(jnp.asarray, (t, np.sqrt(1 - sigmas**2), sigmas)))
    x_t, _ = walk(ipndm(), make_denoiser(settings), levels, jnp.asarray(x_T), np.zeros((9, *SHAPE)))
    compare("diffusers' solvers", x_t, theirs[1:], "float64")


def denoise_in_jax(x, t):
    """The toy denoiser."""
    return 0.5 * x + 0.2 * jnp.sin(x) + 0.05 * jnp.cos(t.astype(x.dtype)[0] / 100)


def test_ddim(compare, monkeypatch, double):
    scheduler, _ = make_scheduler(
        monkeypatch, {"family": "DDIM", "steps": 20, "clip_sample": False}
    )
    x_T = draws(SHAPE, "float64", 4)
    theirs = run_theirs(scheduler, 20, to_torch(x_T))
    schedule = make_schedule(linear_betas(1000), dtype="float64")
    levels = level_at(schedule, jnp.asarray(timestep_grid(1000, 20, "leading")))
    x_t, _ = walk(ddim(), make_denoiser({}), levels, x_T, np.zeros((20, *SHAPE)))
    compare("diffusers' solvers", x_t, theirs[1:], "float64")
