import hashlib

import numpy as np
import pytest

from jax_ddpm.data.idx import write_idx
from jax_ddpm.data.sources import open_source
from jax_ddpm.errors import UserError

EMBEDDED = {
    "train": (
        10_000,
        "e1427044c614fabc29feeff0f27e6b68f88a9ee2f2cfe7d783b9157159864883",
        "2c02745d4ad8b4511333d0eca662ac5664a371860abaa4588b1670e7be59fbdf",
    ),
    "test": (
        2_000,
        "96315b1732ab731e68b8def3c284f34b605f7deb7a61e683c7d786265c827c83",
        "b2095bc797d1201e84da76c94012c02d0e6f07af0938df4e00120a3b42d1aa4c",
    ),
}


def compute_sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize("split", EMBEDDED)
def test_the_embedded_images_never_change(split):
    source = open_source("embedded", split=split)
    n, images, labels = EMBEDDED[split]
    assert source.images.shape == (n, 28, 28, 1)
    assert source.image_shape == (28, 28, 1)
    assert source.images.dtype == source.labels.dtype == np.uint8
    assert np.bincount(source.labels).tolist() == [n // 10] * 10
    assert compute_sha256(source.images) == images
    assert compute_sha256(source.labels) == labels


def test_embedded_data_take_no_path():
    with pytest.raises(UserError, match=r"--data\.name folder, parquet, cifar10, arrays, idx or"):
        open_source("embedded", "somewhere")


def write_folder(folder, images, labels, suffix=".gz", names=None):
    folder.mkdir(exist_ok=True)
    for name, array in zip(
        names or ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        (images, labels),
        strict=True,
    ):
        if array is not None:
            write_idx(folder / f"{name}{suffix}", array)
    return folder


IMAGES = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
LABELS = np.arange(5, dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_idx_files_is_a_source(tmp_path, suffix):
    source = open_source(
        "fashion_mnist", write_folder(tmp_path / "data", IMAGES, LABELS, suffix=suffix)
    )
    np.testing.assert_array_equal(source.images, IMAGES[..., None])
    np.testing.assert_array_equal(source.labels, LABELS)
    assert source.image_shape == (4, 3, 1)


def test_file_names_with_a_dot_are_found_too(tmp_path):
    names = ("train-images.idx3-ubyte", "train-labels.idx1-ubyte")
    folder = write_folder(tmp_path / "data", IMAGES, LABELS, suffix="", names=names)
    assert len(open_source("fashion_mnist", folder).images) == 5


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (None, None, "does not hold train-images-idx3-ubyte"),
        (IMAGES, None, "does not hold train-labels-idx1-ubyte"),
        (IMAGES, LABELS[:4], r"5 images but labels of shape \(4,\)"),
        (IMAGES, IMAGES, r"5 images but labels of shape \(5, 4, 3\)"),
        (IMAGES[0], LABELS, r"images of shape \(4, 3\)"),
        (IMAGES[:0], LABELS[:0], r"images of shape \(0, 4, 3\)"),
    ],
)
def test_an_incomplete_folder_is_refused(tmp_path, images, labels, message):
    folder = write_folder(tmp_path / "data", images, labels)
    with pytest.raises(UserError, match=f"{folder} .*{message}"):
        open_source("fashion_mnist", folder)


def test_a_missing_folder_is_refused_with_advice(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere.* --data.path"):
        open_source("fashion_mnist", tmp_path / "nowhere")


def test_the_embedded_images_come_in_any_size_and_in_colour():
    source = open_source("embedded", split="test", image_size=32, channels=3)
    assert source.image_shape == (32, 32, 3)


@pytest.mark.parametrize("kind", ["idx", "parquet", "cifar10"])
def test_a_link_out_of_a_folder_is_refused_unless_it_is_allowed(tmp_path, kind):
    data, names = tmp_path / "data", {"parquet": "a.parquet", "cifar10": "test_batch.bin"}
    data.mkdir()
    (tmp_path / "elsewhere").write_bytes(b"")
    link = data / names.get(kind, "train-images-idx3-ubyte")
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is a link out of its folder.*--data.follow-links"):
        open_source(kind, data)
    with pytest.raises(UserError) as caught:
        open_source(kind, data, follow_links=True)
    assert "out of its folder" not in str(caught.value)
