"""Prepared data sets from strangers: read as data, or refused in one sentence."""

import json
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from jax_ddpm.data import array_record, tf_example
from jax_ddpm.data.array_record import Shard, Shards, read_decoded_sizes
from jax_ddpm.data.sources import open_source
from jax_ddpm.data.tfds_folder import INFO, fill_template, find_folder
from jax_ddpm.errors import UserError
from tests.shared.prepared import (
    CORE,
    NAME,
    describe_data,
    describe_features,
    encode_example,
    encode_picture,
    make_examples,
    write_folder,
    write_records,
)

pytestmark = pytest.mark.filterwarnings("ignore:Image size")
GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


def open_strange(root):
    return open_source(NAME, root, image_size=8)


def test_a_prepared_folder_is_read_without_tensorflow_datasets(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    folder = write_folder(tmp_path)
    (folder / "label.labels.txt").write_text("ant\nbee \ncat\n")
    source = open_source(NAME, tmp_path)
    assert source.image_shape == (8, 8, 3)
    assert np.asarray(source.labels).tolist() == [0, 1, 2]
    assert source.class_names == ("ant", "bee", "cat")


def make_png_header(width, height):
    """A PNG that announces a size and has no pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")]
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) run\n"
HOSTILE_PICTURES = {
    "eps": (EPS, r"none of PNG, JPEG"),
    "gif": (encode_picture(GREY, "GIF"), r"none of PNG, JPEG"),
    "large": (make_png_header(13_000, 13_000), r"13000x13000 is more than"),
    "other": (encode_picture(np.zeros((9, 8, 3), np.uint8)), r"is 8x9, but 8x8 was announced"),
    "cut": (encode_picture(GREY)[:45], r"example 1 of the prepared data cannot be read"),
    "empty": (b"", r"none of PNG, JPEG"),
}


@pytest.mark.parametrize("name", HOSTILE_PICTURES)
def test_a_record_with_another_picture_is_refused(tmp_path, monkeypatch, name):
    encoded, message = HOSTILE_PICTURES[name]
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: pytest.fail("it was started"))
    good, *_ = make_examples(1)
    write_folder(tmp_path, [good, encode_example(encoded, 0)])
    with pytest.raises(UserError, match=message):
        open_strange(tmp_path)


def test_a_picture_of_any_size_has_a_limit_too(tmp_path):
    write_folder(
        tmp_path,
        [encode_example(make_png_header(13_000, 13_000), 0)],
        describe_features(shape=(-1, -1, 3)),
    )
    with pytest.raises(UserError, match=r"13000x13000 is more than"):
        open_strange(tmp_path)


def test_jpeg_and_grey_and_transparent_pictures_are_read(tmp_path):
    clear = Image.fromarray(np.zeros((8, 8, 4), np.uint8))
    kinds = [encode_picture(GREY, "JPEG"), encode_picture(GREY), encode_picture(clear)]
    write_folder(tmp_path, [encode_example(kind, i) for i, kind in enumerate(kinds)])
    images = open_source(NAME, tmp_path).images
    np.testing.assert_array_equal(images[1], np.repeat(GREY[..., None], 3, axis=2))
    assert images[2].min() == 255
    assert images[0].shape == (8, 8, 3)


def test_no_class_that_the_features_name_is_imported(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("open('sprung', 'w')\nclass Image: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for kind in ("trap.Image", f"{CORE}.image_feature.Other", "tensorflow_datasetsx.Image"):
        nested = {"pythonClassName": f"{CORE}.sequence_feature.Sequence", "sequence": {}}
        nested["sequence"] = {"feature": {"pythonClassName": kind}}
        root = tmp_path / kind
        write_folder(root, features=describe_features(extra=nested))
        with pytest.raises(UserError, match=f"a feature of the class {kind}, which is not known"):
            open_strange(root)
    assert not (tmp_path / "sprung").exists()
    assert "trap" not in sys.modules


TEXT = {"pythonClassName": f"{CORE}.text_feature.Text", "text": {}}
DAMAGED = {
    "many": (
        describe_data(10**9),
        None,
        r"too few for the 1,000,000,000 records",
    ),
    "five": (describe_data(5), None, r"has 3 records, but dataset_info.json announces 5"),
    "negative": (describe_data(-1), None, "impossible numbers of records"),
    "endless": (describe_data(10**30), None, "impossible numbers of records"),
    "shards": (describe_data(shardLengths=["0"] * 200_000), None, "impossible numbers"),
    "brackets": (describe_data(filepathTemplate="{" * 1_000_000), None, "far too long"),
    "text": (describe_data(shardLengths="x"), None, "is not a prepared data set"),
    "none": (describe_data(shardLengths=[]), None, "the split train of strange has no examples"),
    "up": (describe_data(filepathTemplate="../../../{SPLIT}"), None, "not in its folder"),
    "absolute": (describe_data(filepathTemplate="/etc/passwd"), None, "not in its folder"),
    "field": (describe_data(filepathTemplate="{x.__class__}"), None, "is not a known pattern"),
    "url": (describe_data(filepathTemplate="gs:{SPLIT}"), None, "not in its folder"),
    "name": (describe_data() | {"name": "../x"}, None, r"names the file '../x'"),
    "split": (describe_data(name="../x"), None, r"names the file '../x'"),
    "list": ([], None, "must hold a JSON object"),
    "empty": ({}, None, r"without random access|it has no 'name'"),
    "no image": (None, describe_features(image=TEXT), "not exactly one 8-bit image"),
    "side": (None, describe_features((10**9, 8, 3)), "impossible shape"),
    "channels": (None, describe_features((8, 8, 7)), "which no picture has"),
    "shape": (None, describe_features((8,)), "which no picture has"),
    "classes": (None, describe_features(num_classes=10**9), "has 1000000000 classes"),
    "no classes": (None, describe_features(num_classes="x"), "cannot be read: invalid literal"),
    "deep": (None, "[" * 100_000, "features.json is not the features"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_descriptions_that_do_not_fit_are_refused(tmp_path, case):
    info, features, message = DAMAGED[case]
    folder = write_folder(tmp_path, info=info or None, features=features)
    if not info and info is not None:
        (folder / INFO).write_text(json.dumps(info))
    if isinstance(features, str):
        (folder / "features.json").write_text(features)
    with pytest.raises(UserError, match=message) as caught:
        open_strange(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", [INFO, "features.json", f"{NAME}-train.array_record-00000-of-00001"]
)
@pytest.mark.parametrize("kind", ["pipe", "device", "link", "loop", "missing"])
def test_files_that_are_not_regular_are_refused_without_waiting(tmp_path, name, kind):
    path = write_folder(tmp_path / "root") / name
    (tmp_path / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "missing":
            pass
        case _:
            path.symlink_to({"device": "/dev/zero", "link": tmp_path / "elsewhere"}.get(kind, path))
    with pytest.raises(UserError):
        open_strange(tmp_path / "root")


def test_a_record_that_is_small_on_disk_and_large_in_memory_is_refused(tmp_path):
    path = tmp_path / "a"
    write_records(path, [b"small", bytes(80 * 2**20)])
    assert path.stat().st_size < 2**18
    with pytest.raises(UserError, match="decompression bomb"):
        Shards([Shard(path, 2)], tmp_path)[0]


def test_the_sizes_of_chunks_are_found_across_blocks(tmp_path):
    numbers = np.random.default_rng(0)
    sizes = [*map(int, numbers.integers(0, 150_000, 20)), 65_536, 65_472, 65_473, 1, 0]
    write_records(tmp_path / "a", [numbers.bytes(size) for size in sizes])
    assert list(read_decoded_sizes(tmp_path / "a"))[1 : 1 + len(sizes)] == sizes
    (tmp_path / "b").write_bytes(b"\xff" * 200_000)
    with pytest.raises(UserError, match=r"bomb|not an array_record file"):
        array_record.open_shard(Shard(tmp_path / "b", 1), tmp_path)


def test_the_values_of_a_record_are_read():
    example = encode_example(b"picture", 300, other=b"x" * 1000)
    assert tf_example.read_bytes(example, "image") == b"picture"
    assert tf_example.read_integer(example, "label") == 300
    minus_one = b"\xff" * 9 + b"\x01"
    feature = b"\x1a" + bytes([12]) + b"\x0a" + bytes([10]) + minus_one
    entry = b"\x0a\x01l\x12" + bytes([len(feature)]) + feature
    features = b"\x0a" + bytes([len(entry)]) + entry
    example = b"\x0a" + bytes([len(features)]) + features
    assert tf_example.read_integer(example, "l") == -1
    for wrong in (b"", b"\x0a\xff", b"\x0b", b"\xff" * 20, example[:-1]):
        with pytest.raises(ValueError, match=r"record|not one"):
            tf_example.read_integer(wrong, "l")


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [(INFO, '"3"', "is not a prepared data set"), ("features.json", '"8"', "cannot be read")],
)
def test_infinite_numbers_are_refused(tmp_path, name, number, message):
    path = write_folder(tmp_path, features=describe_features(num_classes=4)) / name
    path.write_text(path.read_text().replace(number, "1e999"))
    with pytest.raises(UserError, match=message):
        open_strange(tmp_path)


def test_templates_are_filled_in_as_tfds_does():
    values = {"DATASET": "a", "SPLIT": "train", "FILEFORMAT": "array_record"}
    name = fill_template("{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", values, 7, 12)
    assert name == "a-train.array_record-00007-of-00012"
    assert fill_template("{SPLIT}_{SHARD_INDEX}", values, 3, 1_000_000) == "train_0000003"


def test_the_folder_of_a_name(tmp_path):
    for place in ("a/1.0.0", "a/1.10.0", "a/1.9.0", "b/x/1.0.0", "c/x/1.0.0", "c/y/2.0.0"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / INFO).touch()
    found = {"a": "a/1.10.0", "a:1.9.0": "a/1.9.0", "a/1.0.0": "a/1.0.0", "b": "b/x/1.0.0"}
    found |= {"b/x": "b/x/1.0.0", "c/y": "c/y/2.0.0", "c/y:2.0.0": "c/y/2.0.0"}
    for name, place in found.items():
        assert find_folder(name, tmp_path) == tmp_path / place, name
    for name in ("d", "a:9.9.9", "b/y"):
        assert find_folder(name, tmp_path) is None, name
    with pytest.raises(UserError, match=r"c has several configurations: choose one .*c/x"):
        find_folder("c", tmp_path)
    (tmp_path / "c" / ".config").mkdir()
    (tmp_path / "c" / ".config" / "metadata.json").write_text('{"default_config_name": "y"}')
    assert find_folder("c", tmp_path) == tmp_path / "c/y/2.0.0"
