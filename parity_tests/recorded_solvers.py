"""Recorded and live schedulers of diffusers, and our sampler for each of them."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_ddpm.process.denoiser import make_denoise_fn, threshold
from jax_ddpm.process.levels import Level, level_at, level_list, level_of_sigma, level_of_t
from jax_ddpm.process.schedules import BETAS, linear_betas, make_schedule
from jax_ddpm.samplers import (
    ddim,
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_sde,
    euler,
    euler_ancestral,
    heun,
    ipndm,
    kdpm2,
    kdpm2_ancestral,
    lms,
    plms,
    pndm,
    sa_solver,
    unipc,
)
from parity_tests.comparing import toy_denoiser

BETA_SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine", "scaled_linear": "quadratic"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}
TWICE = ("Heun", "KDPM2", "KDPM2A", "DPMSDE")  # two calls per step, one in the last
PUBLISHED = float("inf")  # our limit for steps of higher order is left out
SCALED = ("Euler", "EulerA", "LMS", *TWICE)  # their x is x_t / signal


def build_schedule(settings, dtype):
    """Our schedule for the arguments of one of their schedulers."""
    name = BETA_SCHEDULES[settings.get("beta_schedule", "linear")]
    betas = BETAS[name](settings.get("num_train_timesteps", 1000))
    if settings["family"] in TWICE and name == "linear":  # their defaults differ from the others'
        betas = linear_betas(1000, start=0.00085, end=0.012)
    return make_schedule(betas, dtype=dtype)


def choose_sampler(settings, schedule):
    """Our sampler for one of their schedulers."""
    num_steps = settings["steps"]
    match settings["family"]:
        case "DPM" | "EDMDPM":
            return choose_multistep(settings, num_steps)
        case "DPMS":
            return dpmpp_2s()
        case "UniPC":
            return unipc(order=settings.get("solver_order", 2), num_steps=num_steps)
        case "Euler" | "EDMEuler":
            return euler()
        case "EulerA":
            return euler_ancestral()
        case "Heun":
            return heun(most_sigma=PUBLISHED)
        case "DEIS":
            return deis(order=settings.get("solver_order", 2), num_steps=num_steps)
        case "LMS":
            return lms()
        case "IPNDM":
            return ipndm()
        case "KDPM2":
            return kdpm2(level_of_sigma=level_of_sigma(schedule), most_sigma=PUBLISHED)
        case "KDPM2A":
            return kdpm2_ancestral(level_of_sigma=level_of_sigma(schedule), most_sigma=PUBLISHED)
        case "DPMSDE":
            return dpmpp_sde(level_of_sigma=level_of_sigma(schedule), most_sigma=PUBLISHED)
        case "SA":
            orders = {
                name: settings.get(name, 2) for name in ("predictor_order", "corrector_order")
            }
            # They draw noise in steps that start at 200 <= t <= 800.
            ends = level_at(schedule, jnp.array([200, 800]))
            tau_min, tau_max = (ends.sigma / ends.signal).tolist()
            return sa_solver(**orders, tau_min=tau_min, tau_max=tau_max, num_steps=num_steps)
        case "PNDM" if settings.get("skip_prk_steps"):
            return plms(most_sigma=PUBLISHED)
        case "PNDM":
            return pndm(level_of_t=level_of_t(schedule), most_sigma=PUBLISHED)


def choose_multistep(settings, num_steps):
    """Our multistep solver for the order and kind in their arguments."""
    if settings.get("solver_order", 2) == 1:
        return ddim()
    if settings.get("solver_order", 2) == 3:
        return dpmpp_3m(num_steps=num_steps)
    make = dpmpp_2m_sde if settings.get("algorithm_type") == "sde-dpmsolver++" else dpmpp_2m
    return make(correction=settings.get("solver_type", "midpoint"), num_steps=num_steps)


def make_denoiser(settings, apply_fn=toy_denoiser):
    """The denoiser inside their scheduler: none of them clips, but some threshold x_0."""
    denoise_fn = make_denoise_fn(
        apply_fn,
        None,
        prediction_type=PREDICTIONS[settings.get("prediction_type", "epsilon")],
        clip_x_0=False,
    )
    if not settings.get("thresholding"):
        return denoise_fn

    def thresholded(x_t, level):
        prediction = denoise_fn(x_t, level)
        ratio = settings.get("dynamic_thresholding_ratio", 0.995)
        x_0 = threshold(prediction.x_0, ratio, settings.get("sample_max_value", 1.0))
        return prediction._replace(x_0=x_0)

    return thresholded


def find_levels(settings, schedule, timesteps, sigmas=None):
    """The levels they visit: ours at their timesteps, or at their sigmas between the timesteps."""
    if settings["family"] == "PNDM":
        end = -1 if settings.get("set_alpha_to_one") else 0
        return level_at(schedule, jnp.asarray(np.append(timesteps, end)))
    if settings["family"] in TWICE:  # each level but the first and the last is listed twice
        timesteps = timesteps[::2]
        sigmas = np.append(sigmas[::2][: len(timesteps)], sigmas[-1])
    if sigmas[-1] > 0:  # they end at the level of t = 0, not at the clean image
        ended = level_list(schedule, timesteps, sigmas[:-1])
        last = level_at(schedule, jnp.asarray(0))
        return jax.tree.map(lambda all_of, end: all_of.at[-1].set(end), ended, last)
    between = np.any(timesteps != np.round(timesteps))
    if between or settings.get("use_karras_sigmas") or settings.get("use_lu_lambdas"):
        return level_list(schedule, timesteps, sigmas[:-1])
    return level_at(schedule, jnp.asarray(np.append(timesteps, -1).astype(int)))


def drop_inner_timesteps(settings, timesteps):
    """Drop the timesteps inside a step from their list."""
    if settings["family"] != "PNDM":
        return timesteps
    if settings.get("skip_prk_steps"):
        return np.delete(timesteps, 2)
    return np.append(timesteps[:12:4], timesteps[12:])


def find_step_ends(settings, num_calls):
    """The number of the call of theirs that completes each of our steps."""
    match settings["family"]:
        case family if family in TWICE:
            return np.append(np.arange(1, num_calls, 2), num_calls - 1)
        case "PNDM" if settings.get("skip_prk_steps"):
            return np.arange(1, num_calls)
        case "PNDM":
            return np.append([3, 7, 11], np.arange(12, num_calls))
    return np.arange(num_calls)


def walk(sampler, denoise_fn, levels, x_T, noises):
    """(x_t after each step, x_0 predicted in each step); the step is compiled once."""

    @jax.jit
    def step(state, noise, cur, nxt):
        return sampler.step(state, noise, cur, nxt, denoise_fn)

    state, trajectory = sampler.init(x_T), []
    for i in range(len(levels.t) - 1):
        cur, nxt = (Level(*(field[j] for field in levels)) for j in (i, i + 1))
        state, prediction = step(state, noises[i], cur, nxt)
        trajectory.append((state.x_t, prediction.x_0))
    return [jnp.stack(arrays) for arrays in zip(*trajectory, strict=True)]
