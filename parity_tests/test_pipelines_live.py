"""Pipelines that the installed diffusers saves and loads, beside the runs that they become."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file

from jax_ddpm import runs
from jax_ddpm.cli import convert as command
from jax_ddpm.config.run import Config, DiffusionConfig, SampleConfig
from jax_ddpm.interop.network import Network, from_torch
from jax_ddpm.jobs.build import build, make_sampler, make_sampling_levels
from jax_ddpm.jobs.convert import write_run
from jax_ddpm.jobs.generate import make_denoiser
from jax_ddpm.jobs.parameters import load_params
from jax_ddpm.models import UNetConfig, make_network
from jax_ddpm.samplers import sample
from parity_tests.comparing import QUICK, draws, to_jax, to_torch

THEIRS = "diffusers (live)"
NETWORK = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
GOOGLES = {
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
SHORT = {"num_train_timesteps": 20}
COSINE, V = {"beta_schedule": "squaredcos_cap_v2"}, {"prediction_type": "v_prediction"}
FREE, TRAILING = {"clip_sample": False}, {"timestep_spacing": "trailing"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "sample"}
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1e30}
DPM = DPMSolverMultistepScheduler

# Measured, max |ours - theirs| / max |theirs| in float32: ddpm 4.8e-7 to 7.2e-6, but 8.3e-5 with
# sigmoid betas, because 1 - alphas_cumprod loses digits in their float32; ddim 6.6e-7 to 2.2e-5;
# all others below 8.3e-5.
# name: (scheduler, its settings, changes of the network, number of steps or None for T, eta)
CASES = {
    "ddpm, google's": (
        DDPMScheduler,
        {"variance_type": "fixed_large"},
        {**GOOGLES, "sample_size": 16},
        10,
        0.0,
    ),
    "ddpm, cosine, v, free": (DDPMScheduler, {**SHORT, **COSINE, **V, **FREE}, {}, None, 0.0),
    "ddpm, sigmoid, x_0, rectangle": (
        DDPMScheduler,
        {**SHORT, "beta_schedule": "sigmoid", "prediction_type": "sample"},
        {"sample_size": (8, 16), "in_channels": 1, "out_channels": 1},
        None,
        0.0,
    ),
    "ddpm, latent's schedule": (
        DDPMScheduler,
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {},
        10,
        0.0,
    ),
    "ddpm, trained betas": (
        DDPMScheduler,
        {"num_train_timesteps": 12, "trained_betas": np.linspace(0.01, 0.4, 12).tolist()},
        {"attention_head_dim": 4},
        None,
        0.0,
    ),
    "ddpm, learned range": (
        DDPMScheduler,
        {**SHORT, "variance_type": "learned_range"},
        {"out_channels": 6, "resnet_time_scale_shift": "scale_shift"},
        None,
        0.0,
    ),
    "ddpm, threshold": (DDPMScheduler, {**SHORT, **THRESHOLD}, {"act_fn": "mish"}, None, 0.0),
    "ddpm, zero SNR, trailing": (DDPMScheduler, {**ZERO_SNR, **TRAILING}, {}, 10, 0.0),
    "ddpm, laplace": (
        DDPMScheduler,
        {**SHORT, **V, "beta_schedule": "laplace"},
        {"downsample_type": "resnet", "upsample_type": "resnet"},
        None,
        0.0,
    ),
    "ddim": (DDIMScheduler, {}, {"num_class_embeds": None}, 10, 0.0),
    "ddim, offset, v": (DDIMScheduler, {**V, "steps_offset": 1}, {}, 10, 0.0),
    "ddim, noise, free, x_0": (
        DDIMScheduler,
        {**FREE, "prediction_type": "sample"},
        GOOGLES,
        8,
        0.5,
    ),
    "ddim, zero SNR, trailing": (DDIMScheduler, {**ZERO_SNR, **TRAILING}, {}, 10, 0.0),
    "2M": (DPM, {}, {}, 10, 0.0),
    "2M, cosine, clipped log-SNR": (DPM, {**COSINE, **V, "lambda_min_clipped": -5.1}, {}, 16, 0.0),
    "2M, threshold, learned range": (
        DPM,
        {**THRESHOLD, "variance_type": "learned_range"},
        {"out_channels": 6},
        8,
        0.0,
    ),
    "3M, trailing, x_0": (
        DPM,
        {**TRAILING, "solver_order": 3, "prediction_type": "sample"},
        {"add_attention": False},
        8,
        0.0,
    ),
    "2M SDE, leading, v": (
        DPM,
        {**V, "algorithm_type": "sde-dpmsolver++", "timestep_spacing": "leading"},
        {"mid_block_type": None},
        9,
        0.0,
    ),
    "order 1": (DPM, {**TRAILING, "solver_order": 1}, {}, 6, 0.0),
}
LEADING, KARRAS = {"timestep_spacing": "leading"}, {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
# Imported only: DDPMPipeline and DDIMPipeline do not call these schedulers as they must be called.
# Measured: at most 7.4e-5, as for the cases above.
SOLVERS = {
    "2S": (DPMSolverSinglestepScheduler, V, {}, 9, 0.0),
    "UniPC": (UniPCMultistepScheduler, {}, {}, 8, 0.0),
    "UniPC, leading, x_0, threshold": (
        UniPCMultistepScheduler,
        {**LEADING, **THRESHOLD, "prediction_type": "sample"},
        {},
        7,
        0.0,
    ),
    "PNDM": (PNDMScheduler, {"set_alpha_to_one": True}, {}, 20, 0.0),
    "PLMS, cosine": (
        PNDMScheduler,
        {**COSINE, "skip_prk_steps": True, "set_alpha_to_one": True},
        {},
        8,
        0.0,
    ),
    "Euler, whole timesteps": (EulerDiscreteScheduler, {}, {}, 10, 0.0),
    "Euler, trailing, v": (EulerDiscreteScheduler, {**TRAILING, **V}, {}, 7, 0.0),
    "Euler, offset": (EulerDiscreteScheduler, {**LEADING, "steps_offset": 1}, {}, 6, 0.0),
    "Euler, karras": (EulerDiscreteScheduler, KARRAS, {}, 6, 0.0),
    "Euler, exponential, v": (EulerDiscreteScheduler, {**EXPONENTIAL, **V}, {}, 6, 0.0),
    "Euler ancestral": (EulerAncestralDiscreteScheduler, {**LEADING, **V}, {}, 6, 0.0),
    "Heun": (HeunDiscreteScheduler, TRAILING, {}, 5, 0.0),
    "Heun, karras, clipped": (
        HeunDiscreteScheduler,
        {**KARRAS, "clip_sample": True, "beta_schedule": "scaled_linear"},
        {},
        5,
        0.0,
    ),
    "LMS": (LMSDiscreteScheduler, {**TRAILING, **COSINE}, {}, 7, 0.0),
    "LMS, karras, v": (LMSDiscreteScheduler, {**KARRAS, **V}, {}, 7, 0.0),
    "KDPM2": (KDPM2DiscreteScheduler, {**LEADING, "beta_end": 0.02}, {}, 5, 0.0),
    "KDPM2 ancestral": (KDPM2AncestralDiscreteScheduler, {**TRAILING, **V}, {}, 5, 0.0),
}
FIRST = "2M"
ONE_WAY = ("order 1", "2M, cosine, clipped log-SNR")  # imported only
cases = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == FIRST else pytest.mark.slow) for n in CASES]
)
solvers = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) for n in SOLVERS]
)


def make_pipeline(name):
    """Make a pipeline of diffusers with random weights."""
    make_scheduler, settings, changes, _, _ = (CASES | SOLVERS)[name]
    kind = DDIMPipeline if make_scheduler is DDIMScheduler else DDPMPipeline
    network = UNet2DModel(**{**NETWORK, **changes}).eval()
    if kind is DDIMPipeline:
        return kind(unet=network, scheduler=make_scheduler(**settings))
    return kind(network, make_scheduler(**settings))


def draw_theirs(monkeypatch, pipeline, x_T, noises, eta=0.0, **step):
    """Let their scheduler walk from `x_T`, with `noises` where it draws noise.

    The x of some of them is x_t over the signal.
    """
    queue, scheduler = iter(noises), pipeline.scheduler
    fake = lambda *args, **kwargs: to_torch(next(queue))  # noqa: E731
    monkeypatch.setattr(f"{type(scheduler).__module__}.randn_tensor", fake, raising=False)
    if isinstance(scheduler, DDIMScheduler):
        step["eta"] = eta
    scheduler.set_timesteps(len(noises))
    x, t = to_torch(x_T), scheduler.timesteps[0]
    x = x / scheduler.scale_model_input(torch.ones(()), t)
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = pipeline.unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(output, t, x, **step).prev_sample
    return to_jax(x)


def draw_ours(folder, x_T, noises):
    """Draw the images of a run from `x_T`, with `noises`."""
    run = runs.load(folder)
    parts = build(run.config, run.image_shape)
    params, settings = load_params(run, parts)[0], run.config.sample
    levels = make_sampling_levels(settings, parts.schedule)
    sampler = make_sampler(settings, parts.diffusion, parts.schedule, len(levels.t) - 1)

    def walk(params, x_T, noises):
        denoise_fn = make_denoiser(parts, settings, params, None)
        return sample(sampler, denoise_fn, levels, x_T, lambda i: noises[i])[0]

    given = params, jnp.asarray(x_T), jnp.asarray(noises)
    return jax.jit(walk).lower(*given).compile(QUICK)(*given)


def draw_all_noise(image_shape, num_steps):
    shape = (2, *image_shape)
    return draws(shape, "float32", 1), draws((num_steps, *shape), "float32", 2)


@pytest.mark.slow
@cases
def test_a_saved_pipeline_draws_the_same_images(compare, monkeypatch, tmp_path, name):
    _, settings, _, steps, eta = CASES[name]
    pipeline = make_pipeline(name)
    pipeline.save_pretrained(tmp_path / "theirs")
    more = [] if steps is None else ["--sample.num-steps", str(steps)]
    more += ["--sample.eta", str(eta)] if eta else []
    command.run([str(tmp_path / "theirs"), "--out", str(tmp_path / "run"), *more])
    run = runs.load(tmp_path / "run")
    num_steps = steps or settings["num_train_timesteps"]
    x_T, noises = draw_all_noise(run.image_shape, num_steps)
    theirs = draw_theirs(monkeypatch, pipeline, x_T, noises, eta)
    compare("pipelines of diffusers", draw_ours(tmp_path / "run", x_T, noises), theirs, "float32")


@solvers
def test_a_saved_solver_draws_the_same_images(compare, monkeypatch, tmp_path, name):
    _, _, _, steps, _ = SOLVERS[name]
    pipeline = make_pipeline(name)
    pipeline.save_pretrained(tmp_path / "theirs")
    given = ["--sample.num-steps", str(steps), "--out", str(tmp_path / "run")]
    command.run([str(tmp_path / "theirs"), *given])
    run = runs.load(tmp_path / "run")
    x_T, noises = draw_all_noise(run.image_shape, steps)
    theirs = draw_theirs(monkeypatch, pipeline, x_T, noises)
    compare("pipelines of diffusers", draw_ours(tmp_path / "run", x_T, noises), theirs, "float32")


def list_plainly(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.slow
@cases
def test_a_pipeline_comes_back_bit_for_bit_with_the_same_scheduler(tmp_path, name):
    """In, out, and loaded by diffusers: the same state dict, network and scheduler."""
    if name in ONE_WAY:
        pytest.skip("no scheduler of theirs is written for it")
    _, settings, _, steps, _ = CASES[name]
    num_steps, pipeline = steps or settings["num_train_timesteps"], make_pipeline(name)
    pipeline.save_pretrained(tmp_path / "theirs")
    more = ["--sample.num-steps", str(num_steps)]
    command.run([str(tmp_path / "theirs"), "--out", str(tmp_path / "run"), *more])
    command.run([str(tmp_path / "run"), "--to", "diffusers", "--out", str(tmp_path / "ours")])
    back = type(pipeline).from_pretrained(tmp_path / "ours")
    ours, theirs = back.unet.state_dict(), pipeline.unet.state_dict()
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor)
        assert ours[key].dtype == torch.float32
    for key, value in pipeline.unet.config.items():
        assert key.startswith("_") or list_plainly(back.unet.config[key]) == list_plainly(value)
    require_same_scheduler(back.scheduler, pipeline.scheduler, num_steps)


def require_same_scheduler(ours, theirs, num_steps):
    """The same class, betas, timesteps and settings, apart from how the betas are written."""
    assert type(ours) is type(theirs)
    written = ("_", "beta", "trained_betas", "timestep_spacing", "lambda_min", "sample_max_value")
    for key, value in theirs.config.items():
        assert key.startswith(written) or ours.config[key] == value, key
    limits = ours.config.sample_max_value, theirs.config.sample_max_value
    assert limits[0] == limits[1] or min(limits) >= 1e9
    # 1.1e-5: betas that are computed in float32 there, and in float64 before they are written
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=5e-5, atol=1e-9)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(num_steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()


def make_ho_run(folder, sample_settings, **diffusion):
    """Make a run of Ho et al.'s U-Net with random weights."""
    model = UNetConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, num_groups=4, dropout=0.0)
    config = Config(
        model=model,
        diffusion=DiffusionConfig(num_timesteps=20, **diffusion),
        sample=sample_settings,
    )
    network = make_network(model, (8, 8, 3))
    shapes, numbers = jax.eval_shape(network.init, jax.random.key(0)), np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: numbers.normal(0, 0.2, leaf.shape).astype(np.float32), shapes
    )
    write_run(runs.Run(folder, config, (8, 8, 3)), Network("torch_ref", model, params, None))
    return params


HO = {
    "ddpm, google's": (SampleConfig(num_steps=20), {}),
    "ddim, own schedule": (
        SampleConfig(sampler="ddim", num_steps=10, eta=0.3),
        {"schedule": "sigmoid_cumprod", "prediction_type": "v"},
    ),
    "2M, clipped": (
        SampleConfig(sampler="dpmpp_2m", num_steps=10, spacing="trailing"),
        {"schedule": "cosine", "prediction_type": "x_0"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n.startswith("ddim") else pytest.mark.slow) for n in HO]
)
def test_hos_network_leaves_and_draws_the_same_images(compare, monkeypatch, tmp_path, name):
    settings, diffusion = HO[name]
    params = make_ho_run(tmp_path / "run", settings, **diffusion)
    command.run([str(tmp_path / "run"), "--to", "diffusers", "--out", str(tmp_path / "ours")])
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "ours")
    x_T, noises = draw_all_noise((8, 8, 3), settings.num_steps)
    step = {}
    if settings.sampler == "ddim":
        pipeline = DDIMPipeline.from_pretrained(tmp_path / "ours")
        step = {"use_clipped_model_output": True}
    theirs = draw_theirs(monkeypatch, pipeline, x_T, noises, settings.eta, **step)
    compare("pipelines of diffusers", draw_ours(tmp_path / "run", x_T, noises), theirs, "float32")
    file = tmp_path / "ours" / "unet" / "diffusion_pytorch_model.safetensors"
    written, loaded = load_file(file), pipeline.unet.state_dict()
    assert written.keys() == loaded.keys()
    assert all(torch.equal(written[key], loaded[key]) for key in written)
    config = json.loads((file.parent / "config.json").read_text())
    back = from_torch({k: v.numpy() for k, v in written.items()}, "diffusers", config)
    for ours, theirs in zip(*map(jax.tree.leaves, (params, back.params)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.guard
def test_the_printed_call_of_a_pipeline_works(tmp_path):
    make_ho_run(tmp_path / "run", SampleConfig(sampler="ddim", num_steps=5))
    command.run([str(tmp_path / "run"), "--to", "diffusers", "--out", str(tmp_path / "ours")])
    card = (tmp_path / "ours" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("PATH", str(tmp_path / "ours"))
    found = {}
    exec(code, found)
    assert np.asarray(found["images"][0]).shape == (8, 8, 3)
