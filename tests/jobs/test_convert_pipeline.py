"""The folder of a pipeline becomes a run with everything that its documents say."""

import json

import jax
import numpy as np
import pytest

from jax_ddpm import runs
from jax_ddpm.cli import convert as command
from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, to_state_dict
from jax_ddpm.interop.files import write_weights
from jax_ddpm.models import UNet2DConfig, parameter_shapes

NETWORK = {
    "sample_size": [8, 16],
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [4],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": None,
    "add_attention": False,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 30,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.001,
    "beta_end": 0.3,
    "prediction_type": "v_prediction",
    "clip_sample": False,
}


@pytest.fixture
def pipeline(tmp_path):
    folder = tmp_path / "pipeline"
    for name in ("unet", "scheduler"):
        (folder / name).mkdir(parents=True)
    index = {"_class_name": "DDIMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / "config.json").write_text(json.dumps(NETWORK))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in NETWORK.items()}
    shapes = parameter_shapes(UNet2DConfig(**lists))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    write_weights(weights, to_state_dict(params, PEERS["diffusers"]))
    return folder


def convert(pipeline, *flags):
    out = pipeline.parent / "run"
    command.run([str(pipeline), "--out", str(out), *flags])
    return runs.load(out)


def test_everything_that_a_pipeline_says_is_in_the_run(pipeline, capsys):
    run = convert(pipeline)
    assert run.image_shape == (8, 16, 1)
    assert run.config.data.channels == 1
    diffusion, sample = run.config.diffusion, run.config.sample
    assert len(diffusion.betas) == diffusion.num_timesteps == 30
    assert diffusion.betas[-1] == pytest.approx(0.3)
    assert diffusion.prediction_type == "v"
    assert (sample.sampler, sample.num_steps, sample.clip_x_0) == ("ddim", 30, False)
    table = capsys.readouterr().out
    assert "data.image_size              8x16" in table
    assert "30 numbers from 0.001 to 0.3  scheduler/scheduler_config.json" in table
    assert "sample.num_steps             30                            assumed" in table
    assert "fixed_large                   assumed, as in diffusers-ddpm" in table


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--prediction-type", "eps"), "--prediction-type is eps, but scheduler/.* says v: leave"),
        (("--schedule", "linear"), "--schedule contradicts scheduler/.*, which has the betas 30"),
        (("--num-timesteps", "20"), "--num-timesteps is 20, but scheduler/.* says 30"),
        (
            ("--model.norm-num-groups", "2", "--source", "diffusers"),
            "--model.norm-num-groups is not possible here",
        ),
        (("--sample.clip-x0",), "unknown flag --sample.clip-x0: did you mean --sample.clip-x-0"),
    ],
)
def test_flags_that_contradict_the_weights_are_refused(pipeline, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        convert(pipeline, *flags)
    assert not (pipeline.parent / "run").exists()


def test_a_sampler_that_we_do_not_have_can_be_replaced(pipeline):
    path = pipeline / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(SCHEDULER | {"set_alpha_to_one": False}))
    with pytest.raises(
        UserError, match=r"set_alpha_to_one is false.*another with --sample.sampler"
    ):
        convert(pipeline)
    run = convert(
        pipeline, "--sampler", "heun", "--data.image-size", "4", "--sample.num-steps", "5"
    )
    assert (run.config.sample.sampler, run.image_shape) == ("heun", (4, 4, 1))
