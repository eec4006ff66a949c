"""Tiny files of CIFAR-10, in the form of its home page. Pickles are written as Python 2 did."""

import io
import struct
import tarfile

import numpy as np

NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 3072), np.uint8)
LABELS = np.arange(18).reshape(6, 3) % 10
RECONSTRUCT = (
    b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09"
)
DTYPE = (
    b"cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b"
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)


def write_text(text):
    return b"U" + bytes([len(text)]) + text.encode()


def write_python_2(pixels, labels):
    """A batch as cPickle of Python 2 wrote it, with NumPy 1's array."""
    rows, count = struct.pack("<H", len(pixels)), struct.pack("<I", pixels.size)
    state = b"(K\x01M" + rows + b"M\x00\x0c\x86" + DTYPE + b"\x89T" + count + pixels.tobytes()
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    files = b"".join(write_text(f"{i}.png") + b"r" + struct.pack("<I", 300 + i) for i in range(3))
    items = [
        write_text("batch_label") + b"q\x02" + write_text("training batch 1 of 5") + b"q\x03",
        write_text("labels") + b"q\x04]q\x05(" + numbers + b"e",
        write_text("data") + b"q\x06" + RECONSTRUCT + state + b"tb",
        write_text("filenames") + b"]q\x0c(" + files + b"e",
    ]
    return b"\x80\x02}q\x01(" + b"".join(items) + b"u."


def write_binary(pixels, labels):
    return np.column_stack([labels.astype(np.uint8), pixels]).tobytes()


KINDS = {
    "python": ("cifar-10-batches-py", "", write_python_2),
    "binary": ("cifar-10-batches-bin", ".bin", write_binary),
}


def list_files(kind):
    """The files in one of the archives: name -> bytes."""
    folder, suffix, write = KINDS[kind]
    batches = zip(NAMES, PIXELS, LABELS, strict=True)
    files = {f"{folder}/{name}{suffix}": write(pixels, labels) for name, pixels, labels in batches}
    return {f"{folder}/readme.html": b"hello", **files}


def write_archive(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
