"""Parquet files as Hugging Face stores data sets of images."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from jax_ddpm.cli import train
from jax_ddpm.config.run import SourceConfig
from jax_ddpm.data import parquet, pictures
from jax_ddpm.data.sources import has_test_part, open_source
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.build import open_data

arrow = pytest.importorskip("pyarrow")
write_table = pytest.importorskip("pyarrow.parquet").write_table

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 6, 6, 3), np.uint8)
LABELS = [2, 0, 1, 1, 0, 2, 2]
FEATURES = {
    "img": {"_type": "Image"},
    "label": {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"},
}


def encode(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, kind)
    return file.getvalue()


def write(path, images=IMAGES, labels=LABELS, name="img", features=FEATURES, group=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [
        {
            "bytes": image if image is None or isinstance(image, bytes) else encode(image),
            "path": "x",
        }
        for image in images
    ]
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    columns = {name: arrow.array(cells, kind)}
    if labels is not None:
        columns["label"] = arrow.array(labels[: len(cells)])
    table = arrow.table(columns)
    if features:
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    write_table(table, path, row_group_size=group)
    return path


def write_parts(root):
    write(root / "data" / "train-00000-of-00002.parquet", IMAGES[:4], LABELS[:4])
    write(root / "data" / "train-00001-of-00002.parquet", IMAGES[4:], LABELS[4:])
    write(root / "data" / "test-00000-of-00001.parquet", IMAGES[:2], LABELS[:2])
    return root


@pytest.mark.parametrize("in_memory", [2**28, 0], ids=["in memory", "on demand"])
def test_a_folder_as_hugging_face_stores_it_is_a_source(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(pictures, "IN_MEMORY", in_memory)
    monkeypatch.setattr(parquet, "CACHED", 1)
    source = open_source("parquet", write_parts(tmp_path))
    assert isinstance(source.images, np.ndarray) == (in_memory > 0)
    np.testing.assert_array_equal([source.images[i] for i in (6, 0, 3, 4, 5, 1, 2)],
                                  IMAGES[[6, 0, 3, 4, 5, 1, 2]])  # fmt: skip
    assert len(source.images) == 7
    assert source.labels.tolist() == LABELS
    assert source.class_names == ("cat", "dog", "eel")
    assert len(open_source("parquet", tmp_path, "test").images) == 2
    assert open_source("parquet", tmp_path, image_size=4, channels=1).image_shape == (4, 4, 1)


def test_one_file_is_a_source_whatever_its_columns_are_called(tmp_path):
    path = write(tmp_path / "a.parquet", name="photo", labels=None, features=None)
    source = open_source("parquet", path)
    np.testing.assert_array_equal(source.images, IMAGES)
    assert source.labels.tolist() == [0] * 7 and source.class_names == ()


def test_grey_pictures_stay_grey(tmp_path):
    source = open_source("parquet", write(tmp_path / "a.parquet", IMAGES[..., :1]))
    np.testing.assert_array_equal(source.images, IMAGES[..., :1])


@pytest.mark.parametrize(
    ("names", "split", "used"),
    [
        (
            ["default/train/0.parquet", "default/test/0.parquet"],
            "train",
            ["default/train/0.parquet"],
        ),
        (["cats.parquet", "latest.parquet"], "train", ["cats.parquet", "latest.parquet"]),
        (["train-0.parquet", "validation-0.parquet"], "test", ["validation-0.parquet"]),
        (["a_train.parquet", "a_val.parquet", "a_test.parquet"], "test", ["a_test.parquet"]),
    ],
)
def test_names_say_which_part_a_file_holds(tmp_path, names, split, used):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert parquet.find_files(tmp_path, split) == [tmp_path / name for name in used]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    write_parts(tmp_path)
    write(tmp_path / "data" / ".ipynb_checkpoints" / "train-checkpoint.parquet", IMAGES[:1], [0])
    (tmp_path / "data" / "._train-00000-of-00002.parquet").write_bytes(b"of macOS")
    assert len(open_source("parquet", tmp_path).images) == len(IMAGES)


def test_a_set_without_a_test_part_says_so(tmp_path):
    write(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="has no test or validation part, only train"):
        open_source("parquet", tmp_path, "test")
    assert not has_test_part("parquet", tmp_path)
    assert has_test_part("parquet", write_parts(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [*IMAGES[:2], b"no picture"]}, r"image 2 of .* \(in a\.parquet\) cannot be read .*: it is none of"),
        ({"images": [*IMAGES[:2], None]}, "its bytes are not in the file"),
        ({"images": [*IMAGES[:2], IMAGES[0][:3]]}, "image 2 of .* is 6x3 and the first is 6x6: .*--data.image-size"),
        ({"images": []}, "holds no images"),
        ({"labels": [0, 1, None, 0, 0, 0, 0]}, "is not one class number"),
        ({"labels": [0, 1, -1, 0, 0, 0, 0]}, "is not one class number"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_sentence(tmp_path, change, message):
    path = write(tmp_path / "a.parquet", **change)
    with pytest.raises(UserError, match=message):
        open_source("parquet", path)


def test_other_files_are_refused(tmp_path):
    path = write(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="is not a complete Parquet file"):
        open_source("parquet", path)
    write_table(arrow.table({"text": ["a"], "label": [1]}), path)
    with pytest.raises(UserError, match="has the columns text, label, but exactly one"):
        open_source("parquet", path)
    with pytest.raises(UserError, match=r"there is no .*none"):
        open_source("parquet", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no Parquet file"):
        open_source("parquet", tmp_path / "empty")


def test_without_pyarrow_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"need pyarrow .*: pip install 'jax_ddpm\[parquet\]'"):
        open_source("parquet", path)


@pytest.mark.parametrize("name", ["cifar10", "celeb_a_hq/256"])
def test_a_data_set_may_come_as_parquet(tmp_path, name, capsys):
    source = open_data(SourceConfig(name, write_parts(tmp_path), image_size=8, channels=3))
    assert source.image_shape == (8, 8, 3)
    assert f"{tmp_path} is read as --data.name parquet" in capsys.readouterr().out


def test_the_default_preset_reads_what_the_path_holds(tmp_path):
    parsed, followed = train.read(["--data.path", str(write_parts(tmp_path))])
    assert parsed.flags.config.data.name == "parquet"
    assert ("--data.name", "parquet", "embedded") in followed
