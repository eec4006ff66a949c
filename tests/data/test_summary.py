"""What is found in a data set: counts, values, classes by name, and files left out."""

import json

import numpy as np
import pytest
from PIL import Image

from jax_ddpm.data import summary
from jax_ddpm.data.base import ImageSource
from jax_ddpm.data.sources import FASHION_CLASSES, open_source
from jax_ddpm.data.summary import DataSummary, describe, summarize


def save(path, value=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((4, 6), np.uint8)
    pixels[1, 2] = value
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Three classes, a notebook's hidden folder before them, and files of other kinds."""
    for name in ("cat/1.png", "cat/2.tif", "dog/3.TIFF", "10/4.png"):
        save(tmp_path / name)
    save(tmp_path / ".ipynb_checkpoints/5.png")
    save(tmp_path / "cat/._1.png")
    for name in ("cat/.DS_Store", "notes.txt", "cat/more.TXT", "dog/raw.heic", "LICENSE"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_folder_is_summarised_with_hidden_and_other_files_left_out(folder):
    found = summarize(open_source("folder", folder))
    assert found == DataSummary(
        num_images=4,
        image_shape=(4, 6, 3),
        lowest=0,
        highest=255,
        looked_at=4,
        class_names=("10", "cat", "dog"),
        class_counts=(1, 2, 1),
        left_out=found.left_out,
    )
    assert dict(found.left_out) == {
        "hidden folders": 1,
        "hidden files": 2,
        ".txt": 2,
        ".heic": 1,
        "without a suffix": 1,
    }


def test_a_summary_survives_json(folder):
    found = summarize(open_source("folder", folder))
    assert summary.from_json(json.loads(json.dumps(summary.to_json(found)))) == found


def test_the_table_names_every_class_and_what_is_left_out(folder):
    rows = dict(describe(summarize(open_source("folder", folder, channels=1))))
    assert rows["images"] == "4 of 4x6x1" and rows["values"] == "0 to 255"
    assert rows["classes"] == "3: 0 = 10 (1), 1 = cat (2), 2 = dog (1)"
    assert rows["left out"] == (
        ".txt (2), hidden files (2), .heic (1), hidden folders (1), without a suffix (1)"
    )
    assert "careful" not in rows


@pytest.mark.parametrize(("value", "told"), [(1, "the brightest value is 1"), (0, "nothing to")])
def test_images_that_would_train_as_black_are_pointed_out(tmp_path, value, told):
    save(tmp_path / "mask.png", value)
    rows = dict(describe(summarize(open_source("folder", tmp_path))))
    assert told in rows["careful"]


def test_twelve_bits_in_a_file_of_sixteen_are_pointed_out(tmp_path):
    Image.fromarray(np.array([[0, 4095]], np.uint16)).save(tmp_path / "a.png")
    rows = dict(describe(summarize(open_source("folder", tmp_path))))
    assert rows["values"] == "0 to 16" and "4095 for 12 bits" in rows["careful"]


def test_the_embedded_classes_have_names_and_the_values_of_a_few_images_are_looked_at():
    found = summarize(open_source("embedded"))
    assert found.class_names == FASHION_CLASSES and sum(found.class_counts) == found.num_images
    assert (found.lowest, found.highest, found.looked_at) == (0, 255, 256)


def test_labels_that_are_read_on_demand_or_huge_are_not_counted():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    assert summarize(ImageSource(images, range(2))).class_counts == ()
    assert summarize(ImageSource(images, np.array([0, 2**31 - 1]))).class_counts == ()
    rows = dict(describe(summarize(ImageSource(images, np.zeros(2, np.int32)))))
    assert "classes" not in rows
