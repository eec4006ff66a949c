"""CIFAR-10's own archives."""

import gzip
import pickle
import tarfile

import numpy as np
import pytest

from jax_ddpm.data import cifar10
from jax_ddpm.data.cifar10 import CLASSES, read_cifar10
from jax_ddpm.data.inert_pickle import read_inert
from jax_ddpm.data.sources import open_source
from jax_ddpm.errors import UserError
from tests.shared.cifar10 import (
    KINDS,
    LABELS,
    NAMES,
    PIXELS,
    list_files,
    write_archive,
    write_python_2,
)


def write_folder(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def check(source, batches):
    planes = PIXELS[batches].reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(source.images, planes.transpose(0, 2, 3, 1))
    assert source.labels.tolist() == LABELS[batches].ravel().tolist()
    assert source.class_names == CLASSES
    assert source.image_shape == (32, 32, 3)


def test_the_bytes_written_here_are_a_pickle_that_python_reads_as_the_archive_is_read():
    data = write_python_2(PIXELS[0], LABELS[0])
    expected = pickle.loads(data, encoding="latin-1")
    found = read_inert(data)
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found["data"], expected["data"])
    assert found["labels"] == expected["labels"] and found["filenames"] == expected["filenames"]


@pytest.mark.parametrize("kind", KINDS)
def test_archives_and_their_folders_are_read(kind, tmp_path):
    archive = write_archive(tmp_path / f"cifar-10-{kind}.tar.gz", list_files(kind))
    plain = write_archive(tmp_path / "x.tar", list_files(kind), "w")
    folder = write_folder(tmp_path / "unpacked", list_files(kind))
    for path in (archive, plain, folder, folder / KINDS[kind][0], tmp_path):
        check(read_cifar10(path), slice(0, 5))
        check(read_cifar10(path, "test"), slice(5, 6))


def test_a_batch_that_python_3_has_pickled_for_python_2_is_read(tmp_path):
    files = {
        name: pickle.dumps({"data": pixels, "labels": labels.tolist()}, protocol=2)
        for name, pixels, labels in zip(NAMES, PIXELS, LABELS, strict=True)
    }
    check(read_cifar10(write_archive(tmp_path / "a.tar.gz", files)), slice(0, 5))


class Hostile:
    def __reduce__(self):
        return (print, ("run",))


BATCH = {"data": PIXELS[0], "labels": [1, 2, 3]}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({**BATCH, "labels": [1, 2]}, r"shape \(3, 3072\) for 2 labels"),
        ({**BATCH, "labels": [1, 2, 10]}, "the label 10"),
        ({**BATCH, "labels": [1, 2, -1]}, "not numbers from 0 to 9"),
        ({**BATCH, "labels": [1, 2, 0.5]}, "opcode BINFLOAT"),
        ({**BATCH, "data": PIXELS[0] / 2}, "does not hold bytes"),
        ({**BATCH, "data": Hostile()}, "it refers to .*print"),
        ({"labels": [1]}, "'data'"),
        ([1], "not a batch"),
    ],
)
def test_other_pickles_are_refused_and_never_run(tmp_path, batch, message, capsys):
    files = {"data_batch_1": pickle.dumps(batch, protocol=2)}
    with pytest.raises(UserError, match=rf"data_batch_1 in .* is not a batch.*{message}|{message}"):
        read_cifar10(write_archive(tmp_path / "a.tar.gz", files))
    assert capsys.readouterr().out == ""


def nest(value, depth):
    for _ in range(depth):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps({**BATCH, "labels": [[[0] * 1000] * 1000] * 1000}, 2), "not a list of num"),
        (pickle.dumps({**BATCH, "labels": nest(1, 60)}, 2), "not a list of numbers"),
        (b"\x80\x02}" + pickle.dumps(nest(1, 60), 2)[2:-1] + b"K\x01s.", "a key that is no text"),
    ],
    ids=["wide", "shared", "shared key"],
)
def test_a_small_pickle_of_endless_values_is_refused(tmp_path, data, message):
    with pytest.raises(UserError, match=message):
        read_cifar10(write_archive(tmp_path / "a.tar.gz", {"data_batch_1": data}))


@pytest.mark.parametrize(
    "data", [pickle.dumps(BATCH, 4), b"", b"\x80\x02.", b"(((", b"R.", b"\x80\x02]b."]
)
def test_damaged_pickles_are_refused(tmp_path, data):
    with pytest.raises(UserError, match="is not a batch of CIFAR-10"):
        read_cifar10(write_archive(tmp_path / "a.tar.gz", {"data_batch_1": data}))


def test_damaged_archives_are_refused(tmp_path):
    whole = write_archive(tmp_path / "a.tar.gz", list_files("binary"))
    raw = whole.read_bytes()
    damaged = {
        "damaged or not a tar archive": [
            raw[: len(raw) // 2],
            b"nothing",
            gzip.compress(b"x" * 600),
        ],
        "does not hold data_batch_1:": [gzip.compress(bytes(10240))],
    }
    for message, cases in damaged.items():
        for data in cases:
            whole.write_bytes(data)
            with pytest.raises(UserError, match=message):
                read_cifar10(whole)


def write_header(name, kind=tarfile.REGTYPE, size=0):
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.USTAR_FORMAT)


def extend(record):
    """An extended header of one record, which says how many bytes it has."""
    data = b"%d %s\n" % (len(record) + 4, record)
    return write_header("x", tarfile.XHDTYPE, len(data)) + data.ljust(512, b"\0")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (write_header("a") * 2000, "has more than 1,000 files: not CIFAR-10"),
        (extend(b"comment=a") * 2000 + write_header("a"), "damaged or not a tar archive"),
        (extend(b"GNU.sparse.map=abc") + write_header("a"), "damaged or not a tar archive"),
    ],
    ids=["many", "deep", "sparse"],
)
def test_hostile_archives_are_refused(tmp_path, data, message):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(data, 1))
    with pytest.raises(UserError, match=message):
        read_cifar10(path)


def test_incomplete_data_are_refused(tmp_path):
    files = list_files("binary")
    del files["cifar-10-batches-bin/data_batch_3.bin"]
    with pytest.raises(UserError, match=r"does not hold data_batch_3\.bin: download it again"):
        read_cifar10(write_archive(tmp_path / "a.tar.gz", files))
    folder = write_folder(tmp_path / "folder", {"data_batch_1.bin": bytes(3072)})
    with pytest.raises(UserError, match=r"3,072 bytes, not a multiple of 3073"):
        read_cifar10(folder)
    with pytest.raises(UserError, match=r"there is no .*give cifar-10-binary\.tar\.gz or"):
        read_cifar10(tmp_path / "nothing")
    with pytest.raises(
        UserError, match=r"does not hold CIFAR-10: give cifar-10-binary\.tar\.gz or"
    ):
        read_cifar10(tmp_path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "MAX_BYTES", 50_000)
    path = write_archive(tmp_path / "a.tar.gz", list_files("binary"))
    with pytest.raises(UserError, match="unpacks to more than 50,000 bytes"):
        read_cifar10(path)


def test_the_name_of_the_data_set_is_enough(tmp_path, monkeypatch):
    path = write_archive(tmp_path / "cifar-10-python.tar.gz", list_files("python"))
    check(open_source("cifar10", path, image_size=32, channels=3), slice(0, 5))
    assert open_source("cifar10", path, "test", image_size=8, channels=1).image_shape == (8, 8, 1)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"cifar10 needs --data\.path: cifar-10-binary\.tar\.gz or"):
        open_source("cifar10")
