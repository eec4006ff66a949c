"""jax-ddpm sample and torch_ref.sample draw the same pictures from the same run and seed."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from jax_ddpm import runs
from jax_ddpm.cli import sample
from jax_ddpm.config.run import Config, DiffusionConfig, SampleConfig
from jax_ddpm.files.images import make_image_grid
from jax_ddpm.interop import PEERS, to_state_dict
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.generate import image_keys
from jax_ddpm.models import PulferConfig, UNetConfig
from jax_ddpm.process.grids import timestep_grid
from jax_ddpm.process.schedules import BETAS
from jax_ddpm.runs.checkpoint import open_checkpoints, save
from jax_ddpm.runs.formats import FORMAT
from jax_ddpm.samplers import draw_noise
from tests.shared.long_tests import mark_others_long
from torch_ref import random
from torch_ref import sample as ref

ROOT = Path(__file__).parent.parent
TINY = UNetConfig(
    channels=8, channel_mult=(1,), num_res_blocks=1, attn_levels=(0,), dropout=0.1, num_groups=4
)
CONFIG = Config(
    model=TINY,
    diffusion=DiffusionConfig(num_timesteps=40, schedule="cosine", prediction_type="v"),
    sample=SampleConfig(num_steps=8, spacing="linspace"),
)
SETTINGS = {
    "ddpm": [],
    "ddpm fixed_small": ["--variance", "fixed_small", "--steps", "5"],
    "ddpm unclipped": ["--no-clip-x-0", "--spacing", "lucidrains"],
    "ddim": ["--sampler", "ddim", "--spacing", "trailing"],
    "ddim 0.7": ["--sampler", "ddim", "--eta", "0.7", "--steps", "40"],
}
FEW = [
    pytest.param("ddpm", marks=[pytest.mark.slow, pytest.mark.guard]),
    *(pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS if name != "ddpm"),
]


def write_run(folder, config, image_shape, source="torch_ref"):
    """Write a run folder as training does, with random parameters, and export them."""
    run = runs.open_for_training(replace(config, run=folder), image_shape).run
    shapes = jax.eval_shape(build(config, image_shape).init_state, jax.random.key(0))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    generator = np.random.default_rng(0)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 1
        return jnp.asarray(generator.standard_normal(leaf.shape) / fan_in**0.5, leaf.dtype)

    ema_params = jax.tree.map(draw, state.params)
    with open_checkpoints(run.checkpoints) as checkpoints:
        save(checkpoints, state.replace(ema_params=ema_params), {})
    state_dict = to_state_dict(ema_params, PEERS[source])
    safetensors.numpy.save_file(state_dict, folder / f"{source}.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", CONFIG, (6, 8, 3))


def draw_both(folder, flags, *, num=3, seed=7, dtype="float64"):
    """Draw the images of both programs, [n, h, w, c]."""
    out = folder / "images.npz"
    command = [str(folder), "--out", str(out), "--num", str(num), "--seed", str(seed)]
    command += ["--dtype", dtype, *flags]
    theirs = ref.sample_run(ref.parse_args([*command, "--batch-size", "2"]))
    with np.load(sample.draw(sample.read(command))) as arrays:
        return arrays["arr_0"], theirs


@pytest.mark.parametrize("settings", FEW)
def test_pixels_are_equal_in_float64(folder, settings):
    ours, theirs = draw_both(folder, SETTINGS[settings])
    assert (theirs.shape, theirs.dtype) == ((3, 6, 8, 3), np.uint8)
    assert len(np.unique(theirs)) > 100  # pictures, not black and white
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("label_dropout", [0.0, 0.1])
def test_the_classes_are_drawn_in_turn(tmp_path, label_dropout):
    diffusion = replace(CONFIG.diffusion, label_dropout=label_dropout)
    config = replace(CONFIG, model=replace(TINY, num_classes=3), diffusion=diffusion)
    ours, theirs = draw_both(write_run(tmp_path / "run", config, (6, 8, 3)), [], num=4)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
def test_pixels_are_almost_equal_in_float32(folder, settings):
    ours, theirs = draw_both(folder, SETTINGS[settings], num=16, dtype="float32")
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3  # measured: 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", mark_others_long(["float64", "float32"], keep=("float32",)))
def test_the_pixels_of_myunet_are_equal(tmp_path, dtype):
    config = replace(CONFIG, model=PulferConfig(n_steps=40))
    ours, theirs = draw_both(
        write_run(tmp_path / "run", config, (28, 28, 1), "pulfer"), [], dtype=dtype
    )
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= (1 if dtype == "float32" else 0)
    assert (difference > 0).mean() < 1e-3


def test_images_are_drawn_from_the_same_noise():
    """x_T and the noise of a step, compiled as in the sampler."""
    shape = (3, 5, 2)
    keys = image_keys(7, np.arange(4))

    @jax.jit
    def noise(keys, i):
        x_T, noise_fn = draw_noise(keys, shape, jnp.float64)
        return x_T, noise_fn(i)

    theirs = ref.Noises(random.fold_in(random.key(7), np.arange(4)), shape, ref.torch.float64)
    for ours, i in zip(noise(keys, 12), (-1, 12), strict=True):
        np.testing.assert_array_equal(ours, theirs[i].permute(0, 2, 3, 1).numpy())


@pytest.mark.slow
@pytest.mark.guard
def test_the_program_runs_without_jax(folder, tmp_path):
    """It writes the same image grid as the library."""
    out = tmp_path / "images.png"
    blocked = "import sys; sys.modules.update({n: None for n in ('jax', 'flax', 'jax_ddpm')}); "
    program = blocked + "from torch_ref.sample import main; main()"
    command = [sys.executable, "-c", program, str(folder), "--steps", "2", "--num", "3"]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"Wrote {out}\n"), done.stderr
    expected = ref.sample_run(ref.parse_args([str(folder), "--out", str(out), *command[4:]]))
    with Image.open(out) as image:
        np.testing.assert_array_equal(np.asarray(image), make_image_grid(expected))


@pytest.mark.parametrize("n", [1, 3, 4, 7])
@pytest.mark.parametrize("shape", [(6, 8, 3), (60, 30, 1)])
def test_image_grids_are_equal(n, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (n, *shape), np.uint8)
    np.testing.assert_array_equal(ref.make_image_grid(pixels), make_image_grid(pixels))


@pytest.mark.parametrize("num_steps", [1, 4, 7])
@pytest.mark.parametrize("spacing", ref.SPACINGS)
def test_timesteps_are_equal(spacing, num_steps):
    ours = timestep_grid(100, num_steps, spacing)
    assert ref.timestep_grid(100, num_steps, spacing) == ours.tolist()


def test_the_betas_of_every_schedule_are_equal():
    assert ref.BETAS.keys() == BETAS.keys()
    for name, make_betas in BETAS.items():
        np.testing.assert_allclose(ref.BETAS[name](100), make_betas(100), rtol=1e-10)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"architecture": "unet"', '"architecture": "vit"', "networks unet, pulfer.*, but not vit"),
        ('"sampler": "ddpm"', '"sampler": "euler"', "cannot sample with sample.sampler euler"),
        ('"schedule": "cosine"', '"schedule": "steep"', "diffusion.schedule steep"),
        (
            '"num_steps": 8',
            '"num_steps": 41',
            "the number of steps is 41, not between 1 and T = 40",
        ),
        (f'"format": {FORMAT}', '"format": 9', f"has format 9, not .*{FORMAT}"),
        ('"compute_dtype": "float32"', '"compute_dtype": "bfloat16"', "computes in bfloat16"),
        ('"channels": 8', '"channels": 12', "size mismatch"),
    ],
)
def test_a_run_that_it_does_not_support_is_refused(folder, tmp_path, old, new, message):
    text = (folder / "config.json").read_text()
    assert old in text
    (tmp_path / "config.json").write_text(text.replace(old, new))
    (tmp_path / "torch_ref.safetensors").symlink_to(folder / "torch_ref.safetensors")
    args = ref.parse_args([str(tmp_path), "--out", "a.npz", "--num", "1"])
    with pytest.raises((ValueError, RuntimeError), match=message):
        ref.sample_run(args)


def test_a_run_without_exported_weights_is_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"no .*torch_ref.safetensors: .* jax-ddpm convert"):
        ref.sample_run(ref.parse_args([str(tmp_path), "--out", "a.npz"]))
