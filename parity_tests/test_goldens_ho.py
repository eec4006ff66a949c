"""Recorded numbers of the original implementation (Ho et al. 2020, TensorFlow)."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_ddpm.models import UNetConfig
from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.diffusion import q_mean_variance, q_posterior, q_sample
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.likelihood import vb_term
from jax_ddpm.process.losses import diffusion_loss
from jax_ddpm.process.schedules import linear_betas, make_schedule, named_betas, quadratic_betas
from jax_ddpm.samplers import ddpm, sample
from parity_tests.comparing import (
    DOUBLE_FIRST,
    SHORT,
    check_recorded_unet,
    read_golden,
    toy_denoiser,
)
from parity_tests.recorded_process import (
    MEANS,
    compute_loss,
    find_network,
    mark_others_slow,
    read_runs,
    run_reverse_process,
)

THEIRS = "Ho et al. (recorded)"

# Betas, prediction type and variance of three recorded runs.
RUNS = {
    "eps_large_mse": (linear_betas(24), "eps", "fixed_large"),
    "eps_small_kl": (linear_betas(24), "eps", "fixed_small"),
    "x0_small_mse": (quadratic_betas(24, end=0.2), "x_0", "fixed_small"),
}
ALL_RUNS = read_runs("hojonathanho/process")


def read_inputs(io, tag, dtype):
    """Read the images, noise and timesteps of a recorded run."""
    images, noise = (jnp.asarray(a.astype(dtype)) for a in (io["in.x0"], io["in.noise"][0]))
    return images, noise, jnp.asarray(io[f"both.{tag}/t"])


RECORDED = [
    f"{name}_T{T}" for name, T in read_golden("hojonathanho/tables")[0]["config"]["schedules"]
]
NO_TABLES = ["jsd_T50"]  # it ends in pure noise, for which the original has only betas


@pytest.mark.parametrize("tag", [tag for tag in RECORDED if tag not in NO_TABLES])
def test_tables(compare, tag):
    """The original keeps its tables in float64 even when everything else is float32."""
    _, io = read_golden("hojonathanho/tables")
    name, T = tag.rsplit("_T")
    betas = named_betas(name, int(T))
    schedule = make_schedule(betas, dtype=np.float64)
    names = [name.split("/")[1] for name in io if name.startswith(f"f64.{tag}/")]
    assert len(names) >= 12
    for name in names:
        if not name.startswith("v1_"):
            compare("schedule tables", getattr(schedule, name), io[f"f64.{tag}/{name}"], "float64")
    floor = make_schedule(betas, dtype=np.float64, clipped_log_variance="floor")
    older = io[f"f64.{tag}/v1_posterior_log_variance_clipped"].astype(np.float64)
    compare("schedule tables", floor.posterior_log_variance_clipped, older, "float64")


@pytest.mark.parametrize("tag", NO_TABLES)
def test_betas(compare, tag):
    _, io = read_golden("hojonathanho/tables")
    name, T = tag.rsplit("_T")
    compare("schedule tables", named_betas(name, int(T)), io[f"f64.{tag}/betas"], "float64")


@pytest.mark.parametrize("tag", RUNS)
def test_forward_process(compare, dtype, tag):
    _, io = read_golden("hojonathanho/process")
    names = ("q_sample", "q_posterior_mean", "q_posterior_var", "q_posterior_logvar")
    recorded = {name: io[f"{SHORT[dtype]}.{tag}/{name}"] for name in names}
    schedule = make_schedule(RUNS[tag][0], dtype=dtype)
    x_0, noise, t = read_inputs(io, tag, dtype)
    x_t = q_sample(schedule, x_0, t, noise)
    compare("q_sample", x_t, recorded["q_sample"], dtype)
    posterior = q_posterior(schedule, x_0, jnp.asarray(recorded["q_sample"]), t)
    compare("q_posterior", posterior.mean, recorded["q_posterior_mean"], dtype)
    compare("q_posterior", posterior.variance, recorded["q_posterior_var"], dtype)
    compare("q_posterior", posterior.log_variance, recorded["q_posterior_logvar"], dtype)


@pytest.mark.parametrize("clip_x_0", [False, True])
@pytest.mark.parametrize("tag", RUNS)
def test_predicted_x_0(compare, dtype, tag, clip_x_0):
    _, io = read_golden("hojonathanho/process")
    betas, prediction_type, _ = RUNS[tag]
    schedule = make_schedule(betas, dtype=dtype)
    denoise_fn = make_denoise_fn(
        toy_denoiser, None, prediction_type=prediction_type, clip_x_0=clip_x_0
    )
    x_t = jnp.asarray(io[f"{SHORT[dtype]}.{tag}/q_sample"])
    prediction = denoise_fn(x_t, level_at(schedule, io[f"both.{tag}/t"]))
    recorded = io[f"{SHORT[dtype]}.{tag}/p_pred_xstart_clip{int(clip_x_0)}"]
    compare("predicted x_0 and eps", prediction.x_0, recorded, dtype)


@pytest.mark.parametrize("tag", ["eps_large_mse", "x0_small_mse"])
def test_losses(compare, dtype, tag):
    _, io = read_golden("hojonathanho/process")
    betas, prediction_type, _ = RUNS[tag]
    schedule = make_schedule(betas, dtype=dtype)
    x_0, noise, t = read_inputs(io, tag, dtype)
    loss = diffusion_loss(
        toy_denoiser, None, schedule, x_0, t, noise, prediction_type=prediction_type
    )
    compare("losses", loss, io[f"{SHORT[dtype]}.{tag}/training_losses"], dtype)


@pytest.mark.parametrize("tag", RUNS)
def test_ancestral_chain(compare, dtype, tag):
    _, io = read_golden("hojonathanho/process")
    betas, prediction_type, variance = RUNS[tag]
    schedule = make_schedule(betas, dtype=dtype)
    noises = jnp.asarray(io["in.noise"].astype(dtype))
    denoise_fn = make_denoise_fn(toy_denoiser, None, prediction_type=prediction_type)
    levels = level_at(schedule, jnp.arange(23, -2, -1))
    x_0, _ = sample(ddpm(variance), denoise_fn, levels, noises[0], lambda i: noises[i + 1])
    compare("recorded chains", x_0, io[f"{SHORT[dtype]}.{tag}/p_sample_loop"], dtype)


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize(
    "tag", mark_others_slow(ALL_RUNS, "eps_large_mse eps_learned_kl xprev_large_kl")
)
def test_every_mean_and_variance(compare, dtype, tag):
    """Reverse step, bound and loss, also for networks that predict x_{t-1} or the variance."""
    run, (_, io) = ALL_RUNS[tag], read_golden("hojonathanho/process")
    recorded = {
        name.split("/")[1]: io[name] for name in io if name.startswith(f"{SHORT[dtype]}.{tag}/")
    }
    schedule, network = make_schedule(make_betas(run), dtype=dtype), find_network(run)
    x_0, noise, t = read_inputs(io, tag, dtype)
    x_t = q_sample(schedule, x_0, t, noise)
    # float32 cannot resolve the probabilities of bins far from the mean
    likely = slice(dtype == "float32" and MEANS[run["mean"]] != "eps", None)
    for mine, name in zip(
        q_mean_variance(schedule, x_0, t), ("mean", "var", "logvar"), strict=True
    ):
        compare("q_posterior", mine, recorded[f"q_{name}"], dtype)
    for clip in (False, True):
        prediction, model = run_reverse_process(run, schedule, network, x_t, t, clip_x_0=clip)
        theirs = {
            name: recorded[f"p_{name}_clip{clip:d}"]
            for name in ("pred_xstart", "mean", "variance", "log_variance")
        }
        compare("predicted x_0 and eps", prediction.x_0, theirs["pred_xstart"], dtype)
        compare("the reverse step", model.mean, theirs["mean"], dtype)
        log_variance, variance = (
            jnp.broadcast_to(a, x_t.shape) for a in (model.log_variance, model.variance)
        )
        compare("the reverse step", log_variance, theirs["log_variance"], dtype)
        # its table of large variances has beta at t = 0, but its table of logarithms does not
        compare("the reverse step", variance[1:], theirs["variance"][1:], dtype)
        term = vb_term(schedule, x_0, x_t, t, model)
        compare(
            "terms of the bound", term[likely], recorded[f"vb_terms_clip{clip:d}"][likely], dtype
        )
    later = (t > 0).astype(dtype)[:, None, None, None]
    x_prev = model.mean + later * jnp.exp(model.log_variance / 2) * noise
    compare("one recorded sampler step", x_prev, recorded["p_sample"], dtype)
    loss = compute_loss(run, schedule, network, x_0, t, noise, x_t)
    compare("terms of the bound", loss[likely], recorded["training_losses"][likely], dtype)


def make_betas(run):
    end = run.get("b1", 0.02)
    return {"linear": linear_betas, "quad": quadratic_betas}[run["schedule"]](run["T"], end=end)


@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
def test_unet(compare, dtype):
    config = UNetConfig(channels=32, channel_mult=(1, 1), num_res_blocks=1, dropout=0.0)
    check_recorded_unet(compare, dtype, "hojonathanho/unet", config, "ho")
