import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_ddpm import runs
from jax_ddpm.cli import convert as command
from jax_ddpm.cli.train import read
from jax_ddpm.config.jobs import SampleJob, Weights
from jax_ddpm.errors import UserError
from jax_ddpm.interop import PEERS, from_torch, to_state_dict
from jax_ddpm.interop.files import read_weights, write_weights
from jax_ddpm.jobs.build import build
from jax_ddpm.jobs.export import export_weights
from jax_ddpm.jobs.parameters import load_params
from jax_ddpm.jobs.sample import sample_run
from jax_ddpm.jobs.train import train
from jax_ddpm.models import LucidrainsConfig, PulferConfig, parameter_shapes
from jax_ddpm.process.schedules import BETAS


def convert(*args):
    """Convert a weight file with the command, and load the run that it makes."""
    command.run([str(arg) for arg in args])
    return runs.load(Path(args[list(args).index("--out") + 1]))


def load_parameters(folder):
    run = runs.load(folder)
    return load_params(run, build(run.config, run.image_shape))[0]


def assert_equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def exported(trained_run, tmp_path_factory):
    """The tiny trained run as torch_ref's weights."""
    out = tmp_path_factory.mktemp("exported") / "w.safetensors"
    return export_weights(trained_run, out).file


@pytest.mark.slow
@pytest.mark.guard
def test_a_run_becomes_a_weight_file_with_its_arguments_beside_it(trained_run, exported):
    names = read_weights(exported).keys()
    assert {"conv_in.weight", "down.0.block.0.conv1.weight", "temb.dense.0.bias"} <= names
    arguments = json.loads(exported.with_suffix(".json").read_text())
    assert (arguments["channels"], arguments["num_groups"]) == (4, 2)
    back = from_torch(read_weights(exported), "torch_ref", arguments)
    assert_equal_trees(back.params, load_parameters(trained_run))


@pytest.mark.guard
@pytest.mark.slow
def test_a_round_trip_changes_no_bit(trained_run, exported, tmp_path):
    run = convert(exported, "--source", "torch_ref", "--out", tmp_path / "run")
    assert run.imported_from == "torch_ref"
    assert_equal_trees(load_parameters(tmp_path / "run"), load_parameters(trained_run))
    again = export_weights(tmp_path / "run", tmp_path / "again.safetensors").file
    assert again.read_bytes() == exported.read_bytes()


@pytest.mark.slow
def test_an_imported_run_takes_the_image_size_of_the_data_that_fits(exported, tmp_path):
    run = convert(exported, "--source", "torch_ref", "--out", tmp_path / "run")
    assert run.image_shape == (28, 28, 1)  # fashion-cpu's


@pytest.mark.slow
def test_raw_and_averaged_parameters_give_different_files(trained_run, exported, tmp_path):
    out = tmp_path / "raw.safetensors"
    export_weights(trained_run, out, weights=Weights("raw"))
    assert out.read_bytes() != exported.read_bytes()


SETTINGS = ("--data.image-size", "8", "--diffusion.num-timesteps", "8", "--sample.num-steps", "4")


@pytest.mark.guard
@pytest.mark.slow
def test_an_imported_run_can_be_sampled(exported, tmp_path):
    convert(exported, "--source", "torch_ref", "--out", tmp_path / "run", *SETTINGS)
    out = sample_run(tmp_path / "run", SampleJob(2, tmp_path / "s.npz"))
    assert np.load(out)["arr_0"].shape == (2, 8, 8, 1)


@pytest.mark.slow
def test_an_imported_run_can_be_trained_further_with_its_own_settings(
    exported, tmp_path, make_config
):
    folder = tmp_path / "run"
    convert(exported, "--source", "torch_ref", "--out", folder, *SETTINGS)
    given = make_config(folder)
    data = f"--data.name fashion_mnist --data.path {given.data.path} --train.num-steps 2"
    short = "--train.batch-size 8 --train.log-every 1 --train.sample-every 2 --train.parallel jit"
    args = (
        f"--run {folder} {data} {short} --train.checkpoint-every 1 --train.warmup-steps 0 "
        "--train.optimizer muon --train.ema-decays 0.5"
    )
    config = read(args.split())[0].flags.config
    assert config.model == runs.load(folder).config.model
    run = train(replace(config, sample=replace(config.sample, num_steps=4)))
    assert run.final_grid.exists()
    assert run.imported_from == "torch_ref"


def test_an_existing_folder_is_left_alone(exported, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match=r"mine exists: choose another folder with --out"):
        convert(exported, "--source", "torch_ref", "--out", tmp_path / "mine")


def test_weights_that_do_not_fit_leave_nothing_behind(exported, tmp_path):
    broken = dict(read_weights(exported))
    broken["conv_in.weight"] = broken["conv_in.weight"][:, :, :2]
    write_weights(tmp_path / "w.safetensors", broken)
    shutil.copy(exported.with_suffix(".json"), tmp_path / "w.json")
    with pytest.raises(UserError, match=r"torch_ref weights of this network: .*conv_in.weight"):
        convert(tmp_path / "w.safetensors", "--source", "torch_ref", "--out", tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.json", "w.safetensors"]


@pytest.mark.slow
def test_a_network_that_another_implementation_does_not_have_is_refused(trained_run, tmp_path):
    with pytest.raises(UserError, match="lucidrains does not have the network"):
        export_weights(trained_run, tmp_path / "w.safetensors", "lucidrains")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_wrapped_diffusion_brings_its_schedule_along(tmp_path):
    config = LucidrainsConfig(dim=8, dim_mults=(1, 2), channels=1)
    shapes = parameter_shapes(config)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    state = {f"model.{k}": v for k, v in to_state_dict(params, PEERS["lucidrains"]).items()}
    write_weights(tmp_path / "w.npz", state | {"betas": BETAS["cosine"](50).astype(np.float32)})
    run = convert(
        tmp_path / "w.npz",
        "--source",
        "lucidrains",
        "--out",
        tmp_path / "run",
        "--data.image-size",
        "8",
    )
    assert (run.config.diffusion.schedule, run.config.diffusion.num_timesteps) == ("cosine", 50)
    assert run.config.preset == "denoising-diffusion-pytorch"
    assert run.image_shape == (8, 8, 1)


@pytest.mark.slow
def test_a_table_of_times_limits_the_chain_and_the_tutorials_script_loads_the_export(tmp_path):
    shapes = parameter_shapes(PulferConfig(n_steps=20))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    theirs = {f"network.{k}": v for k, v in to_state_dict(params, PEERS["pulfer"]).items()}
    write_weights(tmp_path / "w.npz", theirs)
    run = convert(tmp_path / "w.npz", "--source", "pulfer", "--out", tmp_path / "run")
    assert (run.config.diffusion.num_timesteps, run.config.sample.num_steps) == (20, 20)
    out = export_weights(tmp_path / "run", tmp_path / "w.safetensors").file
    back = read_weights(out)
    assert back.keys() == theirs.keys()
    assert all(np.array_equal(back[name], array) for name, array in theirs.items())


@pytest.mark.slow
def test_flags_choose_the_weights_of_a_trainers_file(exported, tmp_path, capsys):
    bare = read_weights(exported)
    average = {f"ema.model.{name}": array + 1 for name, array in bare.items()}
    write_weights(tmp_path / "w.npz", average | {f"net.{n}": array for n, array in bare.items()})
    shutil.copy(exported.with_suffix(".json"), tmp_path / "w.json")
    args = tmp_path / "w.npz", "--source", "torch_ref", "--out"
    expected = from_torch(bare, "torch_ref", {"num_groups": 2}).params
    convert(*args, tmp_path / "a")
    assert "the average at ema.model" in capsys.readouterr().out
    after = jax.tree.map(lambda a: a + 1, expected)
    assert_equal_trees(load_parameters(tmp_path / "a"), after)
    for flags in (("--weights", "raw"), ("--prefix", "net")):
        convert(*args, tmp_path / flags[1], *flags)
        assert_equal_trees(load_parameters(tmp_path / flags[1]), expected)
