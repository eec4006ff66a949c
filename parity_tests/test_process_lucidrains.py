"""Recorded numbers of lucidrains' GaussianDiffusion, with and without a learned variance."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.diffusion import p_mean_variance, q_posterior, q_sample
from jax_ddpm.process.drawing import add_offset
from jax_ddpm.process.grids import timestep_grid
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.losses import make_loss_fn
from jax_ddpm.process.pixel_losses import mean_loss
from jax_ddpm.process.predictions import eps_from_x_0, v_from, x_0_from_eps, x_0_from_v
from jax_ddpm.process.schedules import named_schedule
from jax_ddpm.process.weighting import loss_weight
from jax_ddpm.samplers.editing import mix_noisy
from parity_tests.comparing import DOUBLE_FIRST, SHORT, nchw_to_nhwc, read_golden, toy_denoiser
from parity_tests.recorded_process import (
    compile_chain,
    mark_others_slow,
    read_runs,
    toy_self_conditioned,
    toy_with_variance,
)

THEIRS = "lucidrains (recorded)"

SCHEDULES = {"linear": "linear_rescaled", "cosine": "cosine", "sigmoid": "sigmoid_cumprod"}
OBJECTIVES = {"pred_noise": "eps", "pred_x0": "x_0", "pred_v": "v"}
CASES = ["lucidrains/process", "lucidrains/learned_variance"]
RUNS = {tag: (case, run) for case in CASES for tag, run in read_runs(case).items()}


def pair_noise(x_0, noise):
    """Reorder the noise to bring it closest to the images, as the peer does."""
    images, drawn = (np.asarray(a).reshape(len(a), -1) for a in (x_0, noise))
    distances = np.linalg.norm(images[:, None] - drawn[None], axis=-1)
    return noise[linear_sum_assignment(distances)[1]]


def build_schedule(name, num_timesteps, dtype):
    return named_schedule(SCHEDULES[name], num_timesteps, dtype=dtype, clipped_log_variance="floor")


class Recorded:
    """A run: its inputs in the requested dtype, and what the peer returned for them."""

    def __init__(self, tag, dtype):
        case, self.run = RUNS[tag]
        _, self.io = read_golden(case)
        self.dtype, self.prefix = dtype, f"{SHORT[dtype]}.{tag}/"
        self.schedule = build_schedule(self.run["beta_schedule"], self.run["timesteps"], dtype)
        self.x_0, self.noises = (
            jnp.asarray(nchw_to_nhwc(self.io[f"in.{a}"]).astype(dtype)) for a in ("x0", "noise")
        )
        self.t = jnp.asarray(self.io[f"both.{tag}/t"])
        self.x_t = self.diffuse(self.x_0, self.t, self.noises[0])
        self.level, self.prediction_type = (
            level_at(self.schedule, self.t),
            OBJECTIVES[self.run["objective"]],
        )
        self.learned, self.self_condition = (
            self.run.get("learned", False),
            self.run.get("selfcond", False),
        )
        self.network = toy_with_variance if self.learned else toy_denoiser
        self.network = toy_self_conditioned if self.self_condition else self.network

    def __getitem__(self, name):
        array = self.io[self.prefix + name]
        return (nchw_to_nhwc(array) if array.ndim > 3 else array).astype(self.dtype)

    def __contains__(self, name):
        return self.prefix + name in self.io

    def diffuse(self, x_0, t, noise):
        """Noise x_0. An immiscible peer first reorders the noise, without telling the caller."""
        noise = pair_noise(x_0, noise) if self.run.get("immiscible") else noise
        return q_sample(self.schedule, x_0, t, noise)

    def predict(self, clip_x_0):
        return make_denoise_fn(
            self.network,
            None,
            prediction_type=self.prediction_type,
            clip_x_0=clip_x_0,
            learned_variance=self.learned,
        )(self.x_t, self.level)

    def loss_fn(self):
        if self.learned:
            settings = {
                "objective": "hybrid",
                "variance": "learned_range",
                "log_floor": 1e-15,
                "vb_weight": self.run.get("vb_loss_weight", 0.001),
            }
        else:
            capped = self.run.get("min_snr_loss_weight", False)
            settings = {
                "weighting": "min_snr" if capped else "snr",
                "min_snr_gamma": self.run.get("min_snr_gamma", 5),
            }
        return make_loss_fn(
            self.network, self.schedule, prediction_type=self.prediction_type, **settings
        )

    def chain(self, kind, setting, x_T, timesteps, noises):
        run = compile_chain(
            kind,
            setting,
            self.prediction_type,
            self.network,
            learned_variance=self.learned,
            self_condition=self.self_condition,
        )
        return run(x_T, level_at(self.schedule, jnp.asarray(timesteps)), noises)


@pytest.fixture(params=DOUBLE_FIRST)
def dtype(request):
    return request.param


FIRST = "pred_noise_cosine_minsnr pred_x0_linear minsnr2 selfcond learned_linear"


@pytest.fixture(params=mark_others_slow(RUNS, FIRST))
def recorded(request, dtype):
    return Recorded(request.param, dtype)


def test_tables(compare, dtype):
    """In float32 the peer rounds the ends of its sigmoid, which shifts all its tables."""
    manifest, io = read_golden("lucidrains/tables")
    for name, num_timesteps in manifest["config"]["schedules"]:
        schedule = build_schedule(name, num_timesteps, dtype)
        prefix = f"{SHORT[dtype]}.{name}_T{num_timesteps}/"
        tables = {key.removeprefix(prefix): io[key] for key in io if key.startswith(prefix)}
        assert len(tables) == 18
        for objective, capped in manifest["config"]["weights"]:
            weight = tables.pop(f"loss_weight_{objective}{'_minsnr' * capped}")
            ours = loss_weight(schedule, "min_snr" if capped else "snr", OBJECTIVES[objective])
            compare("loss weights", ours, weight, dtype)
        for key, table in tables.items():
            compare("lucidrains' tables", getattr(schedule, key), table, dtype)


def test_forward_process(compare, recorded, dtype):
    schedule, t, level = recorded.schedule, recorded.t, recorded.level
    compare("q_sample", recorded.x_t, recorded["q_sample"], dtype)
    posterior = q_posterior(schedule, recorded.x_0, recorded.x_t, t)
    for mine, name in zip(posterior, ("mean", "var", "logvar"), strict=True):
        expected = recorded[f"q_posterior_{name}"]
        compare("q_posterior", mine.reshape(expected.shape), expected, dtype)
    x_0, x_t, (noise, output) = recorded.x_0, recorded.x_t, recorded.noises[:2]
    ours = {
        "predict_start_from_noise": x_0_from_eps(level, x_t, output),
        "predict_noise_from_start": eps_from_x_0(level, x_t, x_0),
        "predict_v": v_from(level, x_0, noise),
        "predict_start_from_v": x_0_from_v(level, x_t, output),
    }
    for name, mine in ours.items():
        compare("recorded conversions", mine, recorded[name], dtype)


def test_reverse_process(compare, recorded, dtype):
    """The peer clips in place, so the x_0 it returns is clipped."""
    variance = "learned_range" if recorded.learned else "fixed_small"
    for clip in (False, True):
        prediction = recorded.predict(clip)
        if (
            "pred_x0_clip0" in recorded
        ):  # the peer's learned variance fails there, for want of imports
            compare(
                "predicted x_0 and eps", prediction.x_0, recorded[f"pred_x0_clip{clip:d}"], dtype
            )
            compare(
                "predicted x_0 and eps", prediction.eps, recorded[f"pred_noise_clip{clip:d}"], dtype
            )
        model = p_mean_variance(recorded.schedule, prediction, recorded.x_t, recorded.t, variance)
        compare("the reverse step", model.mean, recorded[f"p_mean_clip{clip:d}"], dtype)
        expected = recorded[f"p_logvar_clip{clip:d}"]
        compare("the reverse step", model.log_variance.reshape(expected.shape), expected, dtype)


def test_losses(compare, recorded, dtype):
    x_0, t, noise, run = recorded.x_0, recorded.t, recorded.noises[0], recorded.run
    if run.get("immiscible"):  # the peer's target is the noise before pairing
        loss = mean_loss("l2", recorded.network(None, recorded.x_t, t), noise)
        assert noise.tolist() != pair_noise(x_0, noise).tolist()
    else:
        given = {"self_condition": jnp.array(True)} if recorded.self_condition else {}
        loss = recorded.loss_fn()(None, x_0, t, noise, **given)
    compare("recorded losses", loss, recorded["p_losses"], dtype)
    if "forward_loss" in recorded:
        compare("recorded losses", loss.mean(), recorded["forward_loss"].reshape(()), dtype)


def test_offset_noise(compare, dtype):
    recorded = Recorded("offset", dtype)
    drawn = jnp.asarray(recorded.io["in.offset_noise"].astype(dtype))
    noise = add_offset(recorded.noises[0], drawn, recorded.run["offset"])
    loss = recorded.loss_fn()(None, recorded.x_0, recorded.t, noise)
    compare("recorded losses", loss, recorded["p_losses_offset"], dtype)


@pytest.mark.parametrize("num_timesteps", [100, 300, 1000])
def test_sampling_timesteps(num_timesteps):
    """The peer truncates numbers that PyTorch rounded to float32."""
    for num_steps in range(1, num_timesteps + 1, 1 + num_timesteps // 200):
        theirs = torch.linspace(-1, num_timesteps - 1, steps=num_steps + 1).int().flip(0)
        ours = timestep_grid(num_timesteps, num_steps, "lucidrains")
        assert ours.tolist() == theirs.tolist(), num_steps


@pytest.mark.parametrize("tag", mark_others_slow(RUNS, "ddim_selfcond learned_linear"))
def test_chains(compare, dtype, tag):
    """All x_t of a chain, in [0, 1] and starting with the noise, as the peer returns them."""
    recorded = Recorded(tag, dtype)
    run, T, noises = recorded.run, recorded.run["timesteps"], recorded.noises
    if "sampling_timesteps" in run:
        steps, eta = run["sampling_timesteps"], run.get("ddim_sampling_eta", 0.0)
        grid, kind, name = timestep_grid(T, steps, "lucidrains"), ("ddim", eta), "ddim_all"
    else:
        variance = "learned_range" if recorded.learned else "fixed_small"
        grid, kind, name = timestep_grid(T, T), ("ddpm", variance), "sample_all"
    x_t = recorded.chain(*kind, noises[0], grid, noises[1:])
    ours = jnp.concatenate([noises[:1], x_t])
    theirs = jnp.moveaxis(recorded[name], 1, 0) * 2 - 1
    compare("recorded chains", ours, theirs, dtype)


@pytest.mark.parametrize("tag", mark_others_slow(RUNS, "learned_linear"))
def test_interpolation(compare, dtype, tag):
    """Two images are noised and mixed at t = 6; the peer then goes on from t = 5."""
    recorded = Recorded(tag, dtype)
    x_0, noises, level = recorded.x_0, recorded.noises, level_at(recorded.schedule, jnp.array(6))
    images, drawn = (x_0, jnp.clip(noises[5], -1, 1)), noises[:2]
    if recorded.run.get("immiscible"):
        drawn = [pair_noise(image, noise) for image, noise in zip(images, drawn, strict=True)]
    x_t = mix_noisy(level, images, jnp.full(len(x_0), 0.3, dtype), tuple(drawn))
    variance = "learned_range" if recorded.learned else "fixed_small"
    ours = recorded.chain("ddpm", variance, x_t, jnp.arange(5, -2, -1), noises[2:])[-1]
    compare("recorded chains", ours, recorded["interpolate"], dtype)
