"""A run becomes the folder of a pipeline, and comes back from it as it was."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jax_ddpm import runs
from jax_ddpm.cli import convert as command
from jax_ddpm.config.run import Config, DiffusionConfig, SampleConfig
from jax_ddpm.errors import UserError
from jax_ddpm.interop.diffusers_facts import describe_scheduler
from jax_ddpm.interop.diffusers_pipeline import write_scheduler
from jax_ddpm.interop.facts import merge
from jax_ddpm.jobs.convert import apply_facts
from jax_ddpm.jobs.export_pipeline import require_pipeline
from jax_ddpm.jobs.translate import make_process
from jax_ddpm.models import UNetConfig

SMALL = SampleConfig(num_steps=20, clip_x_0=False)
OWN_BETAS = tuple(np.linspace(0.01, 0.3, 20).tolist())


def make_config(sample=SMALL, **diffusion):
    return Config(diffusion=DiffusionConfig(**{"num_timesteps": 20, **diffusion}), sample=sample)


def write(config):
    """The scheduler's settings as they are after a walk through JSON."""
    require_pipeline(config)
    return json.loads(json.dumps(write_scheduler(make_process(config, config.sample))))


CONFIGS = {
    "ddpm, linear": make_config(),
    "ddpm, cosine, v, clipped": make_config(
        replace(SMALL, clip_x_0=True, variance="fixed_small"),
        schedule="cosine",
        prediction_type="v",
    ),
    "ddpm, sigmoid, x_0, trailing": make_config(
        replace(SMALL, num_steps=5, spacing="trailing", variance="fixed_small"),
        schedule="sigmoid",
        prediction_type="x_0",
    ),
    "ddpm, own betas": make_config(betas=OWN_BETAS),
    "ddpm, learned variance": make_config(variance="learned_range", objective="hybrid"),
    "ddpm, threshold": make_config(replace(SMALL, dynamic_threshold=0.9, clip_x_0=True)),
    "ddpm, zero SNR, own betas": make_config(
        betas=OWN_BETAS, prediction_type="v", zero_terminal_snr=True
    ),
    "ddim, sigmoid_cumprod": make_config(
        replace(SMALL, sampler="ddim", num_steps=5, rederive_eps=False), schedule="sigmoid_cumprod"
    ),
    "2M, quadratic, clipped": make_config(
        replace(SMALL, sampler="dpmpp_2m", num_steps=5, spacing="trailing", clip_x_0=True),
        schedule="quadratic",
    ),
    "3M": make_config(replace(SMALL, sampler="dpmpp_3m", num_steps=5, spacing="trailing")),
    "2M SDE": make_config(replace(SMALL, sampler="dpmpp_2m_sde", num_steps=5, spacing="trailing")),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_out_and_in_again_is_the_identity(name):
    config = CONFIGS[name]
    steps = {"sample.num_steps": config.sample.num_steps}
    facts = merge(describe_scheduler(write(config), "s.json", steps))
    start = Config(
        diffusion=DiffusionConfig(num_timesteps=7, prediction_type="x_0"),
        sample=replace(
            config.sample, sampler="unipc", clip_x_0=not config.sample.clip_x_0, spacing="quad"
        ),
    )
    back = apply_facts(start, facts, {"sample.num_steps": "--steps"}).config
    if config.diffusion.betas and config.diffusion.zero_terminal_snr:  # then they end at 1
        rescaled = back.diffusion.betas
        assert rescaled[-1] == 1
        assert rescaled[0] == pytest.approx(OWN_BETAS[0])
        back = replace(back, diffusion=replace(back.diffusion, betas=OWN_BETAS))
    if config.diffusion.schedule == "sigmoid_cumprod":  # which diffusers does not have by name
        np.testing.assert_allclose(back.diffusion.betas, write(config)["trained_betas"])
        back = replace(back, diffusion=replace(back.diffusion, betas=None, schedule=name[6:]))
    assert back.diffusion == config.diffusion
    assert replace(back.sample, variance=config.sample.variance) == config.sample


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (make_config(replace(SMALL, sampler="heun")), "cannot have the sampler heun: choose ddpm,"),
        (make_config(variance="learned", objective="hybrid"), "the logarithm of the variance"),
        (
            make_config(replace(SMALL, sampler="ddim"), variance="learned_range"),
            "ddim cannot have a learned variance",
        ),
        (make_config(replace(SMALL, num_steps=5, spacing="quad")), "it visits other timesteps"),
        (
            make_config(replace(SMALL, num_steps=5, spacing="trailing")),
            "it adds noise in its last step",
        ),
        (
            make_config(replace(SMALL, sampler="ddim", num_steps=7, spacing="linspace")),
            "its steps do not end at the next timestep",
        ),
        (make_config(replace(SMALL, sampler="ddim", spacing="karras")), "levels between"),
        (make_config(rescale_timesteps=True), "--diffusion.rescale-timesteps with T = 20"),
        (replace(make_config(), model=UNetConfig(num_classes=3)), "gives its network no label"),
    ],
)
def test_what_a_pipeline_cannot_have_is_refused(config, sentence):
    with pytest.raises(UserError, match=sentence):
        write(config)


@pytest.mark.slow
def test_a_trained_run_becomes_a_folder_with_a_card(trained_run, tmp_path, capsys):
    out = tmp_path / "pipeline"
    command.run([str(trained_run), "--to", "diffusers", "--out", str(out)])
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert json.loads((out / "model_index.json").read_text())["_class_name"] == "DDIMPipeline"
    call = "num_inference_steps=4, eta=0.0, use_clipped_model_output=True"
    assert f"pipeline({call}).images" in (out / "README.md").read_text()
    assert call in capsys.readouterr().out
    with pytest.raises(UserError, match="exists: choose another folder"):
        command.run([str(trained_run), "--to", "diffusers", "--out", str(out)])


@pytest.mark.slow
def test_a_run_comes_back_from_its_pipeline(trained_run, tmp_path):
    out, again = tmp_path / "pipeline", tmp_path / "run"
    flags = ["--to", "diffusers", "--out", str(out), "--sampler", "ddpm", "--spacing", "leading"]
    command.run([str(trained_run), *flags])
    command.run([str(out), "--out", str(again)])
    old, new = runs.load(trained_run), runs.load(again)
    assert new.image_shape == old.image_shape
    assert new.config.diffusion == replace(old.config.diffusion, clipped_log_variance="floor")
    assert new.config.sample.sampler == "ddpm"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--to", "diffusers"), "--out is missing: the folder to write"),
        (("--to", "diffusers", "--out", "x", "--source", "ho"), "--source ho is only for --to tor"),
        (("--to", "torch", "--steps", "4"), "--steps is only for --to diffusers"),
        (("--to", "diffusers", "--out", "x", "--spacing", "linspace"), "do not end"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(
    trained_run, tmp_path, monkeypatch, flags, sentence
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        command.run([str(trained_run), *flags])
