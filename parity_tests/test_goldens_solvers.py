"""Recorded chains of diffusers' solvers, with a toy denoiser."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.process.grids import continuous_levels
from parity_tests.comparing import DOUBLE_FIRST, SHORT, nchw_to_nhwc, read_golden
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

THEIRS = "diffusers (recorded)"
CASES = ("diffusers/sched_dpmsolver_multistep", "diffusers/sched_others")
ALL = {run["tag"]: (case, run) for case in CASES for run in read_golden(case)[0]["config"]["runs"]}
LEFT_OUT = ("dpm2_eps",)  # we have no DPM-Solver that extrapolates eps
RUNS = [tag for tag in ALL if tag not in LEFT_OUT]
FIRST = ("pp3", "sigma_min_final", "heun_karras", "euler_a", "unipc", "pndm", "dpm_single")


def load_recorded(tag, dtype):
    """Load the settings of a run, its arrays by name and its noise, with channels last."""
    case, settings = ALL[tag]
    io = read_golden(case)[1]
    arrays = {
        name.split("/")[1]: nchw_to_nhwc(array) if array.ndim > 3 else array
        for name, array in io.items()
        if name.startswith((f"{SHORT[dtype]}.{tag}/", f"both.{tag}/"))
    }
    return settings, arrays, jnp.asarray(nchw_to_nhwc(io["in.noise"]).astype(dtype))


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize(
    "tag", [pytest.param(tag, marks=[] if tag in FIRST else pytest.mark.slow) for tag in RUNS]
)
def test_solver_chain(compare, dtype, tag):
    settings, theirs, noises = load_recorded(tag, dtype)
    schedule = build_schedule(settings, dtype)
    timesteps = drop_inner_timesteps(settings, theirs["timesteps"])
    levels = find_levels(settings, schedule, timesteps, theirs.get("sigmas"))
    scale = levels.signal if settings["family"] in SCALED else jnp.ones_like(levels.signal)
    x_T = jnp.asarray(theirs["traj"][0]) * scale[0]
    x_t, x_0 = walk(
        choose_sampler(settings, schedule), make_denoiser(settings), levels, x_T, noises
    )
    x_t /= scale[1:].reshape(-1, 1, 1, 1, 1)
    calls = find_step_ends(settings, len(theirs["traj"]) - 1)
    assert len(calls) == len(x_t)
    compare("recorded solvers", x_t, theirs["traj"][1:][calls], dtype)
    if "x0" in theirs:
        firsts = np.append(0, calls[:-1] + 1)
        compare("recorded solvers", x_0, theirs["x0"][firsts], dtype)


@pytest.mark.parametrize("tag", ["euler_karras", "heun_karras", "karras", "lu"])
def test_grid_between_the_timesteps(compare, dtype, tag):
    """Their DPM-Solver rounds timesteps; we never do."""
    settings, theirs, _ = load_recorded(tag, dtype)
    spacing = "log_snr" if settings.get("use_lu_lambdas") else "karras"
    levels = continuous_levels(build_schedule(settings, dtype), settings["steps"], spacing)
    every = 2 if settings["family"] == "Heun" else 1
    t, sigmas = theirs["timesteps"][::every], np.append(theirs["sigmas"][:-1:every], 0)
    compare("grids", levels.sigma / levels.signal, sigmas.astype(dtype), dtype)
    if settings["family"] == "DPM":
        np.testing.assert_array_equal(np.round(levels.t[:-1]), t)
    else:
        compare("grids", levels.t[:-1], t.astype(dtype), dtype)


def test_every_recorded_solver_is_compared():
    assert sorted([*RUNS, *LEFT_OUT]) == sorted(ALL)
