"""A run leaves as the checkpoint that lucidrains' Trainer loads, per release and objective."""

import json

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from jax_ddpm import runs
from jax_ddpm.cli import convert
from jax_ddpm.config.jobs import SampleJob
from jax_ddpm.errors import UserError
from jax_ddpm.interop.lucidrains_export import choose_release
from jax_ddpm.jobs.sample import sample_run
from parity_tests.comparing import nchw_to_nhwc
from parity_tests.test_lucidrains_releases import OBJECTIVES, load_recorded

THEIRS = "lucidrains (recorded)"
VERSIONS = {"v1_5": "1.5.8", "v1_11": "1.11.1", "v2_3": "2.3.4"}
CASES = [(release, objective) for release in VERSIONS for objective in OBJECTIVES]
FIRST = ("v2_3", "pred_v")
EACH = [case if case == FIRST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]


def export(release, objective, folder, *flags, **changes):
    """Import what GaussianDiffusion saves, as a run, and export that run."""
    state, io = load_recorded(release)
    state = state | {"loss_weight": io[f"loss_weight.{objective}"]} | changes
    np.savez(folder / "w.npz", **state)
    run, out = folder / "run", folder / "out"
    options = ["--source", "lucidrains", "--data.image-size", "8", *flags]
    convert.run([str(folder / "w.npz"), "--out", str(run), *options])
    convert.run([str(run), "--to", "lucidrains", "--out", str(out)])
    file = torch.load(out / "model-1.pt", weights_only=True)
    documents = {p.stem: json.loads(p.read_text()) for p in out.glob("*.json")}
    return state, file, documents


@pytest.mark.slow
@pytest.mark.parametrize(("release", "objective"), EACH)
def test_the_file_holds_what_the_trainer_saves(compare, release, objective, tmp_path):
    state, file, documents = export(release, objective, tmp_path)
    assert file["step"] == 0 and file["scaler"] is None and file["version"] == VERSIONS[release]
    assert documents["diffusion"]["objective"] == objective
    assert documents["diffusion"]["beta_schedule"] == "sigmoid"
    assert (documents["unet"]["dim"], documents["unet"]["channels"]) == (8, 3)
    assert ("resnet_block_groups" in documents["unet"]) == (release != "v2_3")
    model, ema = file["model"], file["ema"]
    assert {name: a.shape for name, a in model.items()} == {n: a.shape for n, a in state.items()}
    expected = {f"{kind}_model.{name}" for kind in ("ema", "online") for name in state}
    assert ema.keys() == expected | {"initted", "step"}
    for name, array in state.items():
        assert torch.equal(ema[f"ema_model.{name}"], model[name])
        if name.startswith("model."):
            assert model[name].numpy().tobytes() == array.tobytes()
        else:
            compare("lucidrains' tables", model[name].numpy(), array, "float32")
    (group,) = file["opt"]["param_groups"]
    assert group["params"] == list(range(sum(name.startswith("model.") for name in state)))


@pytest.mark.slow
@pytest.mark.guard
def test_what_leaves_comes_back_as_it_was(tmp_path):
    told = "--diffusion.offset-noise 0.1 --model.sinusoidal-pos-emb-theta 500"
    _, _, documents = export("v2_3", "pred_x0", tmp_path, *told.split())
    flags = f"--out {tmp_path}/again --data.image-size 8 {told}"
    convert.run([str(tmp_path / "out"), *flags.split()])
    first, again = (runs.load(tmp_path / name).config for name in ("run", "again"))
    assert (first.model, first.diffusion) == (again.model, again.diffusion)
    assert first.diffusion.prediction_type == "x_0"
    assert documents["diffusion"]["offset_noise_strength"] == 0.1
    assert documents["unet"]["sinusoidal_pos_emb_theta"] == first.model.sinusoidal_pos_emb_theta
    assert first.model.sinusoidal_pos_emb_theta == 500


@pytest.mark.slow
def test_a_schedule_without_a_name_leaves_in_the_buffers(tmp_path):
    betas = np.linspace(0.02, 0.3, 20, dtype=np.float32)
    weight = np.ones(20, np.float32)
    product = np.cumprod(1 - betas)
    _, file, _ = export(
        "v2_3", "pred_noise", tmp_path, betas=betas, alphas_cumprod=product, loss_weight=weight
    )
    np.testing.assert_allclose(file["model"]["betas"], betas, rtol=1e-6)  # measured: 0
    np.testing.assert_allclose(
        file["model"]["alphas_cumprod"], product, rtol=1e-5
    )  # measured: 2e-7
    assert "no name for the run's schedule" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"full_mid_attention": True}, "before 0.32"),
        ({"downsampling": "conv", "cosine_attention": True}, "before 0.32"),
        ({"downsampling": "unshuffle", "cosine_attention": True}, "no release"),
    ],
)
def test_networks_of_trainers_that_store_no_objective_are_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        choose_release(arguments)


@pytest.mark.slow
def test_a_learned_variance_arrives_is_sampled_and_leaves(tmp_path):
    state, _ = load_recorded("v2_3")
    wide = {f"model.final_conv.{n}": state[f"model.final_conv.{n}"] for n in ("weight", "bias")}
    wide = {name: np.concatenate([array, 0.1 * array]) for name, array in wide.items()}
    _, file, documents = export("v2_3", "pred_v", tmp_path, **wide)
    run = runs.load(tmp_path / "run")
    assert run.config.diffusion.variance == "learned_range"
    assert run.config.diffusion.prediction_type == "eps"  # its objective is ignored there, too
    assert (run.config.sample.sampler, run.config.sample.num_steps) == ("ddpm", 20)
    pixels = np.load(sample_run(tmp_path / "run", SampleJob(2, tmp_path / "s.npz")))["arr_0"]
    assert pixels.shape == (2, 8, 8, 3)
    assert documents["unet"]["learned_variance"] is True
    assert documents["diffusion"]["vb_loss_weight"] == 0.001
    assert file["model"]["model.final_conv.bias"].shape == (6,)
    assert "LearnedGaussianDiffusion" in (tmp_path / "out/README.md").read_text()


@pytest.mark.slow
def test_the_installed_trainer_loads_it(compare, tmp_path):
    package = pytest.importorskip("denoising_diffusion_pytorch")
    version = package.version.__version__
    release = next((r for r, v in VERSIONS.items() if version.startswith(v)), "v2_3")
    _, io = load_recorded(release)
    export(release, "pred_v", tmp_path)
    (tmp_path / "images").mkdir()
    for i in range(100):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{i}.png")

    def read(name):
        values = json.loads((tmp_path / "out" / name).read_text())
        return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}

    diffusion = package.GaussianDiffusion(
        package.Unet(**read("unet.json")), **read("diffusion.json")
    )
    trainer = package.Trainer(
        diffusion,
        str(tmp_path / "images"),
        train_batch_size=16,
        calculate_fid=False,
        results_folder=str(tmp_path / "out"),
    )
    trainer.load(1)
    theirs = trainer.ema.ema_model
    x, t = (torch.from_numpy(io[name]) for name in ("in.x", "in.t"))
    with torch.no_grad():
        compare("lucidrains' U-Net", theirs.model(x, t).numpy(), io["f32.out"], "float32")
        mean, _, _, _ = theirs.p_mean_variance(x=x, t=t)
    expected = nchw_to_nhwc(io["f32.mean.pred_v"])
    compare("lucidrains' reverse step", nchw_to_nhwc(mean.numpy()), expected, "float32")
    assert jax.tree.leaves(trainer.opt.state_dict()["state"]) == []
