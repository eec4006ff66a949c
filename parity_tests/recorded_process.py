"""What the comparisons with recorded diffusion processes share: toy networks, names, steps."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import pytest

from jax_ddpm.process.denoiser import make_denoise_fn, rescale_timesteps
from jax_ddpm.process.diffusion import LEARNED, p_mean_variance, q_posterior, x_0_from_x_prev
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.likelihood import vb_term
from jax_ddpm.process.losses import make_loss_fn
from jax_ddpm.process.pixel_losses import mean_loss
from jax_ddpm.process.predictions import eps_from_x_0, split_output
from jax_ddpm.process.types import Prediction
from jax_ddpm.samplers import SamplerState, ddim, ddpm, sample
from parity_tests.comparing import GOLDENS, toy_denoiser

MEANS = {
    "EPSILON": "eps",
    "START_X": "x_0",
    "PREVIOUS_X": "x_prev",
    "eps": "eps",
    "xstart": "x_0",
    "xprev": "x_prev",
}
VARIANCES = {"fixedsmall": "fixed_small", "fixedlarge": "fixed_large"}


def read_runs(case):
    """Read the settings of each run of a recorded case, by tag."""
    manifest = json.loads((GOLDENS / case / "manifest.json").read_text())
    return {run["tag"]: run for run in manifest["config"]["runs"]}


def mark_others_slow(tags, first):
    """Make all runs parameters of a test, and mark all but those in `first` slow."""
    tags, first = list(tags), first.split()
    assert set(first) <= set(tags)
    return [pytest.param(tag, marks=() if tag in first else pytest.mark.slow) for tag in tags]


def toy_with_variance(params, x, t):
    """The toy network, with as many channels again for a learned variance."""
    time = t.astype(x.dtype)[:, None, None, None]
    return jnp.concatenate([toy_denoiser(params, x, t), 0.8 * jnp.tanh(x + 0.01 * time)], axis=-1)


def toy_self_conditioned(params, x, t, x_self_cond=None):
    """The toy network, which also takes an earlier guess of x_0."""
    out = toy_denoiser(params, x, t)
    return out if x_self_cond is None else out + 0.1 * x_self_cond


def find_variance(run):
    """Our name for a run's variance."""
    return VARIANCES.get(run["var"], run["var"].lower())


def find_network(run, num_timesteps=None):
    """The toy network that a run of Ho et al. or OpenAI calls."""
    apply_fn = toy_with_variance if find_variance(run) in LEARNED else toy_denoiser
    return (
        rescale_timesteps(apply_fn, num_timesteps or run["T"]) if run.get("rescale") else apply_fn
    )


def run_reverse_process(run, schedule, apply_fn, x_t, t, *, clip_x_0):
    """The prediction at x_t, and p(x_{t-1} | x_t).

    A network that predicts x_{t-1} gives the mean directly, and that mean is never clipped.
    """
    variance, prediction_type = find_variance(run), MEANS[run["mean"]]
    learned, level = variance in LEARNED, level_at(schedule, t)
    if prediction_type != "x_prev":
        prediction = make_denoise_fn(
            apply_fn,
            None,
            prediction_type=prediction_type,
            clip_x_0=clip_x_0,
            learned_variance=learned,
        )(x_t, level)
        return prediction, p_mean_variance(schedule, prediction, x_t, t, variance)
    x_prev, raw_variance = split_output(apply_fn(None, x_t, t), learned)
    x_0 = x_0_from_x_prev(schedule, x_t, t, x_prev)
    x_0 = jnp.clip(x_0, -1, 1) if clip_x_0 else x_0
    prediction = Prediction(x_0, eps_from_x_0(level, x_t, x_0), raw_variance)
    model = p_mean_variance(schedule, prediction, x_t, t, variance)
    return prediction, model._replace(mean=x_prev)


def compute_loss(run, schedule, apply_fn, x_0, t, noise, x_t):
    """The training loss per example, as a run of Ho et al. or OpenAI computes it."""
    loss, learned = run["loss"].upper(), find_variance(run) in LEARNED
    if MEANS[run["mean"]] == "x_prev":
        if loss == "MSE":
            return mean_loss("l2", apply_fn(None, x_t, t), q_posterior(schedule, x_0, x_t, t).mean)
        _, model = run_reverse_process(run, schedule, apply_fn, x_t, t, clip_x_0=False)
        return vb_term(schedule, x_0, x_t, t, model)
    objective = "vlb" if "KL" in loss else "hybrid" if learned else "simple"
    loss_fn = make_loss_fn(
        apply_fn,
        schedule,
        prediction_type=MEANS[run["mean"]],
        objective=objective,
        variance=find_variance(run),
        vb_weight=None if "RESCALED" in loss else 1.0,
    )
    return loss_fn(None, x_0, t, noise)


def take_one_step(sampler, schedule, prediction, x_t, t, noise):
    """Take every example one sampler step, from its own t to t - 1, with a given prediction."""
    steps = []
    for i in range(len(t)):
        mine = jax.tree.map(lambda a, i=i: a[i : i + 1], prediction)
        cur, nxt = level_at(schedule, t[i]), level_at(schedule, t[i] - 1)
        state = SamplerState(x_t[i : i + 1])
        step = sampler.step(state, noise[i : i + 1], cur, nxt, lambda x, level, mine=mine: mine)
        steps.append(step[0].x_t)
    return jnp.concatenate(steps)


@cache
def compile_chain(
    kind, setting, prediction_type, apply_fn, *, learned_variance=False, self_condition=False
):
    """Compile a chain that clips x_0, once for all schedules: x_T, levels, noises -> all x_t."""
    sampler = ddpm(setting) if kind == "ddpm" else ddim(setting)

    @jax.jit
    def run(x_T, levels, noises):
        denoise_fn = make_denoise_fn(
            apply_fn,
            None,
            prediction_type=prediction_type,
            learned_variance=learned_variance,
        )
        return sample(
            sampler,
            denoise_fn,
            levels,
            x_T,
            lambda i: noises[i],
            trace=lambda state, prediction: state.x_t,
            self_condition=self_condition,
        )[1]

    return run
