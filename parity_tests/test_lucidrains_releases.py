"""Every released network of lucidrains' package: output, one reverse step, names, and facts."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from jax_ddpm import runs
from jax_ddpm.cli import convert
from jax_ddpm.config.run import DiffusionConfig, make_betas
from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, from_torch
from jax_ddpm.interop import to_torch as to_torch_names
from jax_ddpm.interop.facts import Question, merge
from jax_ddpm.interop.files import read_weights
from jax_ddpm.interop.recognise import choose_peer, recognise
from jax_ddpm.interop.source import Source
from jax_ddpm.jobs.export import export_weights
from jax_ddpm.process.denoiser import make_denoise_fn
from jax_ddpm.process.diffusion import p_mean_variance
from jax_ddpm.process.levels import level_at
from jax_ddpm.process.schedules import make_schedule
from parity_tests.comparing import DOUBLE_FIRST, GOLDENS, QUICK, nchw_to_nhwc

THEIRS = "lucidrains (recorded)"
PREFIXES = ("model", "denoise_fn")  # of the network in GaussianDiffusion
RELEASES = ["v0_7", "v0_18", "v0_27", "v0_32", "v1_0", "v1_5", "v1_11", "v2_3"]
OBJECTIVES = {"pred_noise": "eps", "pred_x0": "x_0", "pred_v": "v"}


def mark_copies_slow():
    """Mark releases whose network is much like the one of another release."""
    copies = ("v0_18", "v0_32", "v1_0", "v1_5", "v2_3")
    return [pytest.param(r, marks=pytest.mark.slow) if r in copies else r for r in RELEASES]


@functools.cache
def load_recorded(release):
    """Load what GaussianDiffusion saves, and all other arrays."""
    with np.load(GOLDENS / "lucidrains" / release / "io.npz") as file:
        arrays = {name: file[name] for name in file.files}
    state = {n.removeprefix("state."): a for n, a in arrays.items() if n.startswith("state.")}
    return state, arrays


@functools.cache
def load_network(release):
    return from_torch(load_recorded(release)[0], "lucidrains")


def describe(state, version=None):
    tensors = dict(state) if version is None else {"model": state, "version": version}
    return merge(PEERS["lucidrains"].describe(Question(Source(Path("m.pt"), tensors), {})))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DOUBLE_FIRST)
@pytest.mark.parametrize("release", mark_copies_slow())
def test_recorded_output(compare, release, dtype):
    network, (_, io) = load_network(release), load_recorded(release)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), network.params)
    x = nchw_to_nhwc(io["in.x"]).astype(dtype)
    out = jax.jit(network.apply, compiler_options=QUICK)(params, x, io["in.t"])
    short = {"float64": "f64", "float32": "f32"}[dtype]
    compare("lucidrains' U-Net", out, nchw_to_nhwc(io[f"{short}.out"]), dtype)


@pytest.mark.parametrize("release", RELEASES)
def test_a_round_trip_keeps_every_bit(release):
    state = load_recorded(release)[0]
    back = to_torch_names(load_network(release))
    theirs = {n.split(".", 1)[1]: a for n, a in state.items() if n.split(".")[0] in PREFIXES}
    assert back.keys() == theirs.keys()
    assert all(back[name].tobytes() == array.tobytes() for name, array in theirs.items())
    assert all(back[name].shape == array.shape for name, array in theirs.items())


def make_diffusion(facts):
    """The settings of the forward process among `facts`."""
    names = ("schedule", "betas", "num_timesteps", "zero_terminal_snr")
    found = {name: facts.get(f"diffusion.{name}") for name in names}
    return DiffusionConfig(**{name: value for name, value in found.items() if value is not None})


def take_step(schedule, denoise, x, t):
    return p_mean_variance(schedule, denoise(x, level_at(schedule, t)), x, t, "fixed_small").mean


@pytest.mark.parametrize("release", RELEASES)
def test_one_reverse_step_with_what_the_file_says(compare, release):
    """The mean of the step, per objective, with the schedule and the variance of the facts.

    The network's output is the recorded one.
    """
    state, io = load_recorded(release)
    output = jnp.asarray(nchw_to_nhwc(io["f32.out"]))
    x, t = jnp.asarray(nchw_to_nhwc(io["in.x"])), jnp.asarray(io["in.t"])
    for objective, expected_type in OBJECTIVES.items():
        if f"f32.mean.{objective}" not in io:
            continue
        told = f"loss_weight.{objective}" in io
        buffers = {"loss_weight": io[f"loss_weight.{objective}"]} if told else {}
        facts = {what: fact.value for what, fact in describe(state | buffers).items()}
        if told or objective == "pred_noise":
            assert facts["diffusion.prediction_type"] == expected_type
        assert facts["sample.variance"] == "fixed_small"
        schedule = make_schedule(make_betas(make_diffusion(facts)))
        denoise = make_denoise_fn(lambda *_: output, None, prediction_type=expected_type)
        mean = nchw_to_nhwc(io[f"f32.mean.{objective}"])
        compare("lucidrains' reverse step", take_step(schedule, denoise, x, t), mean, "float32")


@pytest.mark.parametrize("release", ["v1_5", "v1_11", "v2_3"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_weights_of_the_loss_tell_the_objective(release, objective):
    state, io = load_recorded(release)
    facts = describe(state | {"loss_weight": io[f"loss_weight.{objective}"]})
    assert facts["diffusion.prediction_type"].value == OBJECTIVES[objective]
    assert facts["diffusion.prediction_type"].origin == "tensor loss_weight"
    assert facts["diffusion.weighting"].value == "snr"
    capped = describe(state | {"loss_weight": io[f"loss_weight.min_snr.{objective}"]})
    assert capped["diffusion.prediction_type"].value == OBJECTIVES[objective]
    assert capped["diffusion.weighting"].value == "min_snr"
    assert capped["diffusion.min_snr_gamma"].value == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("release", RELEASES)
def test_betas_get_their_name_where_they_have_one(release):
    state = load_recorded(release)[0]
    name = "cosine" if release in ("v0_7", "v0_18", "v0_27", "v0_32") else "sigmoid_cumprod"
    facts = describe(state)
    assert facts["diffusion.schedule"] == ("diffusion.schedule", name, "tensor betas")
    assert facts["diffusion.num_timesteps"].value == 20
    facts = describe(state | {"betas": np.linspace(0.01, 0.2, 20, dtype=np.float32)})
    assert len(facts["diffusion.betas"].value) == 20 and "diffusion.schedule" not in facts


ASSUMED = {
    "v0_7": {"full_mid_attention": False},
    "v0_18": {"resnet_block_groups": 8},
    "v0_27": {"resnet_block_groups": 8, "cosine_attention": True},
    "v0_32": {"resnet_block_groups": 8, "cosine_attention": False},
    "v1_11": {"resnet_block_groups": 8, "sinusoidal_pos_emb_theta": 10000.0},
    "v2_3": {"sinusoidal_pos_emb_theta": 10000.0},
}


@pytest.mark.parametrize("release", ASSUMED)
def test_what_no_tensor_tells_is_said_to_be_assumed(release):
    facts = describe(load_recorded(release)[0])
    found = {what: fact for what, fact in facts.items() if what.startswith("model.")}
    assert {what[6:]: fact.value for what, fact in found.items()} == ASSUMED[release]
    assert {fact.origin for fact in found.values()} == {"assumed"}
    config = load_network(release).config
    assert all(getattr(config, what[6:]) == fact.value for what, fact in found.items())
    if release.startswith("v0"):
        assert facts["diffusion.prediction_type"].origin == "assumed"


def test_the_version_in_a_trainers_file_tells_networks_of_the_same_names_apart():
    state = load_recorded("v1_5")[0]
    assert describe(state, "1.7.0").keys() == describe(state).keys()
    with pytest.raises(UserError, match=r"release 1\.7\.7 wrote the file.*other norms"):
        describe(state, "1.7.7")


@pytest.mark.parametrize("release", RELEASES)
def test_the_names_tell_the_implementation(release):
    state = load_recorded(release)[0]
    assert choose_peer(Source(Path("m.pt"), state)) == "lucidrains"
    if release == "v0_18":  # whose network has the names of annotated_layernorm's
        bare = to_torch_names(load_network(release))
        found = recognise(Source(Path("m.pt"), bare))
        assert set(found) == {"lucidrains", "annotated_layernorm"}


def make_trainer_file(release):
    """What Trainer saves: the average, which is taken, is twice the raw weights."""
    state = {name: torch.from_numpy(array) for name, array in load_recorded(release)[0].items()}
    average = {f"ema_model.{name}": 2 * tensor for name, tensor in state.items()}
    ema = {"initted": torch.tensor([True]), "step": torch.tensor([9])} | average
    return {"step": 9, "model": state, "opt": {"state": {}}, "ema": ema, "version": "1.0.7"}


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
def test_a_trainers_file_becomes_a_run_and_goes_back(release, tmp_path, capsys):
    state = load_recorded(release)[0]
    torch.save(make_trainer_file(release), tmp_path / "model-9.pt")
    flags = ["--source", "lucidrains", "--weights", "raw", "--data.image-size", "8"]
    groups = ["--model.resnet-block-groups", "4"] if release == "v1_11" else []
    convert.run([str(tmp_path / "model-9.pt"), *flags, "--out", str(tmp_path / "run"), *groups])
    table = capsys.readouterr().out
    run = runs.load(tmp_path / "run")
    assert run.config.diffusion.num_timesteps == 20
    assert run.config.diffusion.prediction_type == "eps"
    assert "diffusion.schedule" in table and "tensor betas" in table
    if release == "v1_11":
        assert run.config.model.resnet_block_groups == 4
    out = export_weights(tmp_path / "run", tmp_path / "w.safetensors").file
    back = read_weights(out)
    theirs = {n.split(".", 1)[1]: a for n, a in state.items() if n.split(".")[0] in PREFIXES}
    assert back.keys() == theirs.keys()
    assert all(back[name].tobytes() == array.tobytes() for name, array in theirs.items())


def test_a_setting_that_the_network_lacks_is_refused(tmp_path):
    """The flags are those of the newest network; older ones have no dropout."""
    safetensors.numpy.save_file(load_recorded("v1_5")[0], tmp_path / "w.safetensors")
    flags = f"--out {tmp_path}/run --model.dropout 0.1".split()
    with pytest.raises(UserError, match="has no dropout"):
        convert.run([str(tmp_path / "w.safetensors"), *flags])
    assert not (tmp_path / "run").exists()
