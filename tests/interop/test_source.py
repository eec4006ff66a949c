"""Files and folders are found as other programs leave them, with the documents beside them."""

import json

import numpy as np
import pytest

from jax_ddpm.errors import UserError
from jax_ddpm.interop.files import write_weights
from jax_ddpm.interop.source import read_source

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}


def make_pipeline(folder, index=INDEX, unets=("unet",)):
    """Make the folder of a pipeline, whose U-Nets hold one number each."""
    (folder / "scheduler").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    settings = '{"_class_name": "DDPMScheduler", "lambda_min_clipped": -Infinity}'
    (folder / "scheduler" / "scheduler_config.json").write_text(settings)
    for number, name in enumerate(unets):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"_class_name": "UNet2DModel"}')
        write_weights(folder / name / WEIGHTS, {"a": np.full(1, number, np.float32)})
    return folder


def test_a_pipeline_is_read_from_its_folder_its_unet_and_its_file(tmp_path):
    folder = make_pipeline(tmp_path / "p")
    for path in (folder, folder / "unet", folder / "unet" / WEIGHTS):
        source = read_source(path)
        assert source.tensors["a"] == [0]
        assert source.arguments == {"_class_name": "UNet2DModel"}
        name, settings = source.find("scheduler_config.json")
        assert name == "scheduler/scheduler_config.json"
        assert settings["lambda_min_clipped"] == -np.inf


def test_averages_are_taken_unless_raw_weights_are_asked_for(tmp_path):
    folder = make_pipeline(tmp_path / "p", unets=("unet", "unet_ema"))
    assert read_source(folder).tensors["a"] == [1]
    assert read_source(folder).arguments_name == "unet_ema/config.json"
    assert read_source(folder, weights="raw").tensors["a"] == [0]
    assert read_source(folder / "unet").tensors["a"] == [0]


def test_a_folder_with_one_weight_file_stands_for_it(tmp_path):
    write_weights(tmp_path / "w.npz", {"a": np.ones(1)})
    (tmp_path / "w.json").write_text('{"dim": 8}')
    assert read_source(tmp_path).arguments == {"dim": 8}
    write_weights(tmp_path / "v.npz", {"a": np.ones(1)})
    with pytest.raises(UserError, match=r"2 weight files \(v.npz, w.npz\): give one"):
        read_source(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="a folder without a weight file"):
        read_source(tmp_path / "empty")
    with pytest.raises(UserError, match="there is no file"):
        read_source(tmp_path / "nothing")


def make_shards(folder, weight_map):
    folder.mkdir()
    write_weights(folder / "1.safetensors", {"a": np.zeros(1), "b": np.ones(1)})
    write_weights(folder / "2.safetensors", {"c": np.ones(2)})
    path = folder / f"{WEIGHTS}.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    return path


PLACES = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}


def test_sharded_weights_are_put_together(tmp_path):
    index = make_shards(tmp_path / "unet", PLACES)
    for path in (index, tmp_path / "unet", tmp_path):
        source = read_source(path)
        assert source.tensors.keys() == {"a", "b", "c"}
        assert source.arguments == {"_class_name": "UNet2DModel"}


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        (PLACES | {"d": "2.safetensors"}, "disagree about the tensor d"),
        ({"a": "1.safetensors"}, "disagree about the tensor b"),
        (PLACES | {"d": "../w.safetensors"}, "names the file ../w.safetensors, which is not in"),
        (PLACES | {"d": "3.safetensors"}, "there is no file .*3.safetensors"),
        ([], "must have a weight_map"),
    ],
)
def test_an_index_that_its_files_contradict_is_refused(tmp_path, places, sentence):
    with pytest.raises(UserError, match=sentence):
        read_source(make_shards(tmp_path / "unet", places))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"vqvae": ["diffusers", "VQModel"]}, "has a vqvae .VQModel.: only pipelines of a U-Net"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "of the class UNet2DConditionModel"),
    ],
)
def test_pipelines_with_other_parts_are_refused_by_name(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        read_source(make_pipeline(tmp_path / "p", INDEX | changes))
