"""Data sets of TensorFlow Datasets: prepared here, described or missing; TensorFlow never runs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from google.protobuf import json_format

import jax_ddpm
from jax_ddpm.cli import prepare
from jax_ddpm.config.presets import PRESETS
from jax_ddpm.config.run import SourceConfig
from jax_ddpm.data import pictures, tfds_reader
from jax_ddpm.data.loader import batches
from jax_ddpm.data.sources import SOURCES, ImageSource, open_source
from jax_ddpm.data.tfds_writer import write_prepared
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.build import open_data
from jax_ddpm.jobs.prepare_data import prepare_dataset
from tests.shared.prepared import encode_example, encode_picture, make_examples, write_folder

EMBEDDED = open_source("embedded", split="test")
FEW = ImageSource(EMBEDDED.images[:40], EMBEDDED.labels[:40])
ROOT = Path(jax_ddpm.__file__).parents[1]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """`extract`, prepared from forty embedded images, and 20 of them as its test split."""
    out = tmp_path_factory.mktemp("tfds")
    write_prepared(
        {"train": FEW, "test": ImageSource(FEW.images[:20], FEW.labels[:20])}, "extract", out
    )
    return out


def test_the_stock_reader_reads_what_was_prepared(data_dir):
    for split, count in (("train", 40), ("test", 20)):
        stock = tfds.data_source("extract", split=split, data_dir=data_dir, download=False)
        assert len(stock) == count
        np.testing.assert_array_equal([example["image"] for example in stock], FEW.images[:count])
        assert [int(example["label"]) for example in stock] == FEW.labels[:count].tolist()
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("in_memory", [2**28, 0], ids=["in memory", "on demand"])
def test_a_prepared_data_set_is_a_source(data_dir, monkeypatch, in_memory):
    monkeypatch.setattr(pictures, "IN_MEMORY", in_memory)
    source = open_source("extract", data_dir)
    assert isinstance(source.images, np.ndarray) == (in_memory > 0)
    assert source.image_shape == (28, 28, 1)
    np.testing.assert_array_equal([source.images[i] for i in range(40)], FEW.images)
    np.testing.assert_array_equal(np.asarray(source.labels), FEW.labels)
    assert int(source.labels.max()) == (9 if in_memory == 0 else FEW.labels.max())
    assert len(open_source("extract", data_dir, "test").images) == 20
    larger = open_source("extract", data_dir, image_size=32, channels=3)
    expected = open_source("embedded", split="test", image_size=32, channels=3)
    for i in range(2):
        np.testing.assert_array_equal(larger.images[i], expected.images[i])


def test_its_batches_equal_batches_of_the_same_images_in_memory(data_dir, monkeypatch):
    monkeypatch.setattr(pictures, "IN_MEMORY", 0)
    source = open_source("extract", data_dir)
    for found, expected in islice(zip(batches(source, 8, 3), batches(FEW, 8, 3), strict=True), 6):
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        np.testing.assert_array_equal(found.labels, expected.labels)


def test_a_record_is_decoded_once_for_image_and_label():
    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    examples = Counted(make_examples(3))
    records = tfds_reader.Records(examples, "image", "label", (8, 8, 3))
    images, labels = tfds_reader.Field(records, "image"), tfds_reader.Labels(records, "label", 3)
    assert [(images[i].shape, int(labels[i])) for i in range(3)] == [
        ((8, 8, 3), i) for i in range(3)
    ]
    assert examples.reads == 3


def test_a_data_set_named_like_a_built_in_source_is_found_by_tfds(tmp_path):
    """It gets the version number of TFDS's own data set of that name."""
    assert write_prepared({"train": FEW}, "fashion_mnist", tmp_path) == tmp_path / "fashion_mnist"
    stock = tfds.data_source("fashion_mnist", split="train", data_dir=tmp_path, download=False)
    assert len(stock) == 40
    np.testing.assert_array_equal(open_source("fashion_mnist", tmp_path).images, FEW.images)


PREPARED = [name for name, preset in PRESETS.items() if preset.data.name not in SOURCES]


def prepare_noise(name, root):
    """Prepare noise as the data set `name`, which TFDS describes but has not prepared."""
    builder = tfds.builder(name, data_dir=root)
    height, width, channels = builder.info.features["image"].shape
    noise = np.random.default_rng(0).integers(
        0, 256, (3, height or 300, width or 256, channels), np.uint8
    )
    folder = write_folder(root, [encode_example(encode_picture(noise[i]), i) for i in range(3)])
    features = json_format.MessageToDict(builder.info.features.to_proto())
    (folder / "features.json").write_text(json.dumps(features))
    builder.data_path.parent.mkdir(parents=True)
    folder.rename(builder.data_path)


@pytest.mark.parametrize("name", PREPARED)
def test_the_data_of_a_preset_fit_its_network(name, tmp_path, monkeypatch):
    """Using TFDS's own description of each data set, with noise for images."""
    monkeypatch.setattr(pictures, "IN_MEMORY", 0)
    data = replace(PRESETS[name].data, path=tmp_path)
    prepare_noise(data.name, tmp_path)
    side = {"imagenet_resized/64x64": 64, "celeb_a": 64}.get(data.name, 256)
    source = open_data(data)
    assert source.image_shape == (side, side, 3)
    assert len(source.images) == 3
    labels = [int(source.labels[i]) for i in range(3)]
    classes = {"imagenet_resized/64x64": 1000}
    if data.name in classes:
        assert int(source.labels.max()) == classes[data.name] - 1
        assert labels == [0, 1, 2]
    else:
        assert labels == [0, 0, 0]
    if data.name.startswith("lsun"):
        with pytest.raises(UserError, match=r"images of lsun/.* differ in size.*--data.image-size"):
            open_data(replace(data, image_size=None))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "cifar100",
            "cifar100 has not been prepared in {tmp}: run tfds build cifar100 "
            "--file_format=array_record --data_dir={tmp}",
        ),
        ("no_such_data", "there is no data set no_such_data: .* not been prepared in {tmp}"),
        ("celeb_a_hq/255", "--data.name celeb_a_hq/255 cannot be opened: .* no configuration 255"),
        ("not a name", "--data.name not a name cannot be opened"),
        ("huggingface:mnist", "--data.name huggingface:mnist cannot be opened: .* fetched from"),
        ("kubric:kubric_frames", "nothing is fetched from the network"),
        ("gs://bucket/mnist", "nothing is fetched from the network"),
        ("../extract", "--data.name ../extract cannot be opened"),
        ("embeded", "there is no data set embeded, did you mean --data.name embedded?"),
        ("fashion_mnsit", "did you mean --data.name fashion_mnist?"),
        ("foldr", "did you mean --data.name folder?"),
        ("idx", "--data.name idx needs the folder of IDX files"),
    ],
)
def test_data_that_cannot_be_read_give_one_sentence(tmp_path, name, message, caplog):
    path = None if name == "idx" else tmp_path
    with pytest.raises(UserError, match=message.format(tmp=tmp_path)) as caught:
        open_source(name, path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == [], "TFDS logs more than our sentence"


def test_a_missing_split_is_refused(tmp_path):
    write_prepared({"train": FEW}, "extract", tmp_path)
    with pytest.raises(UserError, match="extract has no split test, only train"):
        open_source("extract", tmp_path, "test")


def test_the_validation_split_stands_in_for_a_missing_test_split(tmp_path):
    write_prepared(
        {"train": FEW, "validation": ImageSource(FEW.images[:7], FEW.labels[:7])}, "x", tmp_path
    )
    assert len(open_source("x", tmp_path, "test").images) == 7


def test_another_format_is_refused_with_advice(data_dir, tmp_path):
    """As if it had been prepared in the default format of TensorFlow Datasets."""
    folder = tmp_path / "extract/1.0.0"
    folder.mkdir(parents=True)
    for file in (data_dir / "extract/1.0.0").iterdir():
        if file.suffix == ".json":
            text = file.read_text().replace("array_record", "tfrecord")
            (folder / file.name).write_text(text)
    with pytest.raises(
        UserError, match=r"without random access: prepare it as array_record"
    ) as caught:
        open_source("extract", tmp_path)
    assert "\n" not in str(caught.value)


def test_damage_gives_one_sentence(data_dir, tmp_path):
    folder = tmp_path / "extract/1.0.0"
    folder.mkdir(parents=True)
    for file in (data_dir / "extract/1.0.0").iterdir():
        data = file.read_bytes()
        (folder / file.name).write_bytes(data if file.suffix == ".json" else b"\xff" * len(data))
    with pytest.raises(UserError, match=r"extract|prepared data") as caught:
        open_source("extract", tmp_path)
    assert "\n" not in str(caught.value)


def test_without_tfds_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        UserError, match=r"--data.name cifar100 needs .* pip install 'jax_ddpm\[tfds\]'"
    ):
        open_source("cifar100")


# Preparing data sets.


def test_the_command_prepares_any_source(tmp_path, tiny_folder, capsys):
    flags = f"--name tiny --out {tmp_path} --data.name idx --data.path {tiny_folder}"
    prepare.run(flags.split())
    printed = capsys.readouterr().out
    assert "40 train, 40 test images" in printed
    assert f"--data.name tiny --data.path {tmp_path}" in printed
    expected = open_source("idx", tiny_folder)
    found = open_source("tiny", tmp_path)
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)
    with pytest.raises(UserError, match=r"tiny exists: choose another --name or --out"):
        prepare.run(flags.split())


@pytest.mark.parametrize("name", ["Mine", "my-data", "1st", "../a", ""])
def test_an_invalid_name_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"--name .* lower-case letters"):
        write_prepared({"train": FEW}, name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_data_set_with_configurations_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--name lsun is .* with several configurations"):
        write_prepared({"train": FEW}, "lsun", tmp_path)


def test_a_random_crop_cannot_be_prepared(tmp_path):
    data = SourceConfig(crop="random")
    with pytest.raises(UserError, match=r"--data.crop is random, .* written only once"):
        prepare_dataset("x", tmp_path, data)


def test_an_image_that_cannot_be_read_leaves_nothing_behind(tmp_path):
    class Gone(list):
        def __getitem__(self, index):
            if index == 5:
                raise UserError("picture 5 is gone")
            return FEW.images[index]

    with pytest.raises(UserError, match=r"x could not be prepared: .*picture 5 is gone"):
        write_prepared({"train": ImageSource(Gone(range(40)), FEW.labels)}, "x", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_preparation_leaves_nothing_that_looks_complete(tmp_path):
    script, quiet = str(ROOT / "scripts/prepare_data.py"), subprocess.DEVNULL
    command = [sys.executable, script, "--name", "killed", "--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)
    while not list(tmp_path.glob(".killed.*.tmp/killed/*/*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    with pytest.raises(UserError, match="there is no data set killed"):
        open_source("killed", tmp_path)
    write_prepared({"train": FEW}, "killed", tmp_path)
    assert len(open_source("killed", tmp_path).images) == 40
