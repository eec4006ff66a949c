"""A run that another implementation's code cannot have is refused in one sentence."""

from dataclasses import replace

import numpy as np
import pytest

from jax_ddpm.cli import convert as command
from jax_ddpm.config.run import Config, DiffusionConfig, SampleConfig
from jax_ddpm.errors import UserError
from jax_ddpm.interop.package import Translation, write_readme
from jax_ddpm.interop.package_annotated import write_annotated
from jax_ddpm.interop.package_ho import write_original, write_port
from jax_ddpm.interop.package_openai import write_openai
from jax_ddpm.interop.package_pulfer import write_pulfer
from jax_ddpm.jobs.export import EXPORTS, list_settings
from jax_ddpm.jobs.translate import make_process

SAMPLE = SampleConfig(num_steps=100)
IMPROVED = {
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": (2, 4),
    "channel_mult": (1, 2, 2, 2),
    "conv_resample": True,
    "num_classes": None,
    "num_heads": 1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "dropout": 0.0,
    "out_channels": 3,
}
GUIDED = IMPROVED | {
    "num_head_channels": 8,
    "resblock_updown": True,
    "use_new_attention_order": False,
    "channel_mult": (1.0, 2.0),
}


def write(writer, source, arguments, shape=(32, 32, 3), sample=SAMPLE, **diffusion):
    settings = {"num_timesteps": 100, "schedule": "cosine"} | diffusion
    config = Config(diffusion=DiffusionConfig(**settings), sample=sample)
    process = make_process(config, config.sample)
    return writer(Translation(source, {}, arguments), process, shape), process


def write_improved(changes=None, shape=(32, 32, 3), sample=SAMPLE, **diffusion):
    arguments = IMPROVED | (changes or {})
    package, _ = write(write_openai, "improved_diffusion", arguments, shape, sample, **diffusion)
    return package.documents["model.json"]


def test_the_flags_of_openais_scripts():
    flags = write_improved(sample=replace(SAMPLE, num_steps=10, respacing="10"))
    assert flags == {
        "image_size": 32,
        "num_channels": 32,
        "num_res_blocks": 1,
        "num_heads": 1,
        "num_heads_upsample": -1,
        "use_scale_shift_norm": False,
        "dropout": 0.0,
        "attention_resolutions": "16,8",
        "class_cond": False,
        "learn_sigma": False,
        "diffusion_steps": 100,
        "noise_schedule": "cosine",
        "predict_xstart": False,
        "rescale_timesteps": False,
        "use_ddim": False,
        "timestep_respacing": "10",
        "clip_denoised": True,
        "sigma_small": False,
    }
    guided, _ = write(write_openai, "guided_diffusion", GUIDED)
    assert guided.documents["model.json"]["channel_mult"] == "1,2"
    assert "--num_head_channels 8" in guided.how
    own = GUIDED | {"channel_mult": (0.5, 1, 1, 2, 2, 4, 4), "attention_resolutions": ()}
    guided, _ = write(write_openai, "guided_diffusion", own, (512, 512, 3))
    assert guided.documents["model.json"]["channel_mult"] == ""
    assert guided.documents["model.json"]["attention_resolutions"] == "1024"
    assert '--channel_mult ""' in guided.how


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"shape": (32, 16, 3)}, "square images of 3 channels only, but the run's are 32x16x3"),
        ({"shape": (32, 32, 1)}, "but the run's are 32x32x1"),
        ({"changes": {"out_channels": 4}}, "3 or 6 output channels, but the network has 4"),
        ({"changes": {"num_classes": 10}}, "has 1000 classes, but the network has 10"),
        ({"changes": {"channel_mult": (1, 2)}}, r"has the factors .* but channel_mult is 1, 2"),
        ({"shape": (16, 16, 3)}, "has no images of 16 pixels"),
        ({"changes": {"attention_resolutions": (3,)}}, "have none at the downsampling rate 3"),
        ({"changes": {"conv_resample": False}}, "no flag for conv_resample"),
        ({"prediction_type": "v"}, "predict eps or x_0, but the run's predicts v"),
        ({"schedule": "sigmoid"}, "linear_rescaled or cosine, but the run's is sigmoid"),
        ({"variance": "learned", "objective": "hybrid"}, "the logarithm itself"),
        ({"sample": replace(SAMPLE, sampler="unipc")}, "no sampler unipc: choose ddpm or ddim"),
        ({"sample": replace(SAMPLE, sampler="ddim", eta=0.5)}, "ddim with eta = 0"),
        ({"sample": replace(SAMPLE, dynamic_threshold=0.9)}, "no dynamic threshold"),
        ({"sample": replace(SAMPLE, num_steps=7, spacing="quad")}, "cannot take these 7 steps"),
        ({"sample": replace(SAMPLE, spacing="karras")}, "levels between the timesteps"),
    ],
)
def test_what_no_flag_can_say_is_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        write_improved(**given)


def test_guided_diffusion_draws_with_the_large_variance_only():
    small = replace(SAMPLE, variance="fixed_small")
    assert write_improved(sample=small)["sigma_small"]
    with pytest.raises(UserError, match="with the variance fixed_large"):
        write(write_openai, "guided_diffusion", GUIDED, sample=small)


PULFER = {"n_steps": 200, "time_emb_dim": 100}


@pytest.mark.parametrize(
    ("writer", "source", "diffusion", "sentence"),
    [
        (
            write_pulfer,
            "pulfer",
            {"schedule": "cosine"},
            "the schedules linear, but the run's is cosine",
        ),
        (write_pulfer, "pulfer", {"num_timesteps": 300}, "300 timesteps, but its network only 200"),
        (write_pulfer, "pulfer", {"prediction_type": "v"}, "predict eps, but the run's predicts v"),
        (write_annotated, "annotated", {"schedule": "cosine"}, "cosine_clipped, .* is cosine"),
        (write_annotated, "epita", {"schedule": "quadratic"}, "the run's is quadratic"),
        (write_annotated, "annotated_ws", {"variance": "learned_range"}, "learned variances"),
        (write_port, "pesser", {"schedule": "cosine"}, "jsd, but the run's is cosine"),
        (write_original, "ho", {"rescale_timesteps": True}, "the run gives it t . 1000 / T"),
        (write_original, "ho", {"zero_terminal_snr": True}, "linear with zero terminal SNR"),
    ],
)
def test_another_process_is_refused(writer, source, diffusion, sentence):
    arguments = PULFER | {"num_classes": 1}
    diffusion = {"schedule": "linear"} | diffusion
    sample = replace(SAMPLE, num_steps=diffusion.get("num_timesteps", 100))
    with pytest.raises(UserError, match=sentence):
        write(writer, source, arguments, (28, 28, 1), sample, **diffusion)


def test_betas_between_other_ends_leave_too():
    betas = tuple(np.linspace(0.001, 0.1, 100).tolist())
    package, _ = write(write_pulfer, "pulfer", PULFER, (28, 28, 1), betas=betas)
    assert package.documents["ddpm.json"] == {
        "n_steps": 100,
        "min_beta": 0.001,
        "max_beta": 0.1,
        "image_chw": [1, 28, 28],
    }
    arguments = {"ch": 32, "num_classes": 1}
    package, _ = write(write_port, "pesser", arguments, betas=betas)
    assert package.documents["diffusion.json"] == {
        "beta_schedule": "linear",
        "beta_start": 0.001,
        "beta_end": 0.1,
        "num_diffusion_timesteps": 100,
        "model_var_type": "fixedlarge",
    }


def test_the_text_says_how_the_images_of_the_run_differ():
    sample = replace(SAMPLE, sampler="ddim", num_steps=10)
    package, process = write(write_pulfer, "pulfer", PULFER, (28, 28, 1), sample, schedule="linear")
    text = write_readme(package, "mine", list_settings(process, (28, 28, 1)))
    assert "- the sampler ddim; its code has ancestral sampling" in text
    assert "- 10 steps; its code takes all 100" in text
    assert "does not clip" in text
    assert "ddpm.load_state_dict(torch.load(" in text


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--to", "pulfer"), "--out is missing: the folder to write"),
        (("--to", "pulfer", "--out", "x", "--source", "ho"), "source is ho, but it must be pulfer"),
        (("--to", "pulfer", "--out", "x", "--steps", "4"), "--steps is only for --to diffusers"),
        (("--to", "pulfer", "--out", "x"), "its network is pulfer, and the run's is unet"),
        (("--to", "puler", "--out", "x"), "did you mean 'pulfer'"),
    ],
)
def test_flags_that_do_not_fit_are_refused(trained_run, tmp_path, monkeypatch, flags, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        command.run([str(trained_run), *flags])
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_to_are_those_of_the_registry():
    assert list(EXPORTS)[:2] == ["torch", "diffusers"]
