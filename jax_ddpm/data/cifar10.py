"""CIFAR-10 as its home page offers it: the binary and the Python archive, packed or unpacked."""

import gzip
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from jax_ddpm.data.base import ImageSource, Split
from jax_ddpm.data.inert_pickle import read_inert
from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import explain

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
BATCHES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
EXPECTED = (
    f"{' or '.join(ARCHIVES)} from its home page, or the folder {' or '.join(FOLDERS)} in them"
)
SIDE, PIXELS = 32, 32 * 32 * 3
MAX_BYTES = 2**28  # both archives unpack to 186 MB
MAX_MEMBERS = 1000  # both archives have fewer than ten files
MAX_PICKLE = 2**25  # a batch takes 31 MB


class Unpacked:
    """A stream that refuses to unpack more than CIFAR-10 can have."""

    def __init__(self, stream: Any, path: Path) -> None:
        self.stream, self.path, self.left = stream, path, MAX_BYTES

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes. Raises UserError once there have been too many."""
        found = self.stream.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(found)
        if self.left < 0:
            raise UserError(f"{self.path} unpacks to more than {MAX_BYTES:,} bytes: not CIFAR-10")
        return found


def is_cifar10(path: Path) -> bool:
    """Whether `path` is a tar archive, or a folder that holds CIFAR-10 packed or unpacked."""
    if path.is_file():
        return path.suffix in (".tar", ".tgz") or path.name.endswith(".tar.gz")
    return find_place(path) is not None


def find_place(folder: Path) -> Path | None:
    """The folder of batches, or the archive, in `folder`; None if it holds neither."""
    stems = [stem for stems in BATCHES.values() for stem in stems]
    for place in (folder, *(folder / name for name in FOLDERS)):
        if any((place / f"{stem}{suffix}").is_file() for stem in stems for suffix in SUFFIXES):
            return place
    return next((folder / name for name in ARCHIVES if (folder / name).is_file()), None)


def read_cifar10(path: Path, split: Split = "train") -> ImageSource:
    """Read the images [n, 32, 32, 3], labels and class names of one part of CIFAR-10.

    `path` is an archive, or the folder of its batches, or a folder with either in it. Raises
    UserError if batches are missing or damaged. Runs no pickle.
    """
    if not path.exists():
        raise UserError(f"there is no {path}: give {EXPECTED}, with --data.path")
    place = path if path.is_file() else find_place(path)
    if place is None:
        raise UserError(f"{path} does not hold CIFAR-10: give {EXPECTED}, with --data.path")
    files = {f"{stem}{suffix}" for stem in BATCHES[split] for suffix in SUFFIXES}
    found = read_folder(place, files) if place.is_dir() else read_archive(place, files)
    suffix = ".bin" if any(name.endswith(".bin") for name in found) else ""
    parts = []
    for stem in BATCHES[split]:
        name = stem + suffix
        if name not in found:
            raise UserError(f"{place} does not hold {name}: download it again, or give {EXPECTED}")
        try:
            parts.append(SUFFIXES[suffix](found.pop(name)))
        except Exception as error:  # a damaged or hostile file raises errors of many kinds
            raise UserError(
                f"{name} in {place} is not a batch of CIFAR-10 ({explain(error)}): download it "
                "again"
            ) from error
    planes, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    images = planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return ImageSource(np.ascontiguousarray(images), labels, CLASSES)


def read_folder(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Read each of the files `names` that `folder` has."""
    found = {}
    for path in (folder / name for name in names):
        if path.is_file():
            with path.open("rb") as file:
                found[path.name] = Unpacked(file, path).read()
    return found


def read_archive(path: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Read each of the files `names` that a tar archive has in any folder, gzipped or not.

    Nothing is written. Raises UserError for a damaged archive.
    """
    with path.open("rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    wanted, found = set(names), {}
    try:
        with gzip.open(path) if gzipped else path.open("rb") as stream:
            unpacked: Any = Unpacked(stream, path)
            with tarfile.open(fileobj=unpacked, mode="r|", bufsize=2**20) as archive:
                for number, member in enumerate(archive):
                    if number == MAX_MEMBERS:
                        raise UserError(f"{path} has more than {MAX_MEMBERS:,} files: not CIFAR-10")
                    name = Path(member.name).name
                    if name in wanted and member.isfile() and not member.issparse():
                        file_in: Any = archive.extractfile(member)
                        found[name] = file_in.read()
    except UserError:
        raise
    except Exception as error:  # tarfile, gzip and zlib raise many kinds of errors
        raise UserError(
            f"{path} is damaged or not a tar archive ({explain(error)}): download it again"
        ) from error
    return found


def parse_binary(data: bytes) -> tuple[UInt8[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
    """Parse records of one label and 3072 pixels."""
    if not data or len(data) % (PIXELS + 1):
        raise ValueError(f"it has {len(data):,} bytes, not a multiple of {PIXELS + 1}")
    records = np.frombuffer(data, np.uint8).reshape(-1, PIXELS + 1)
    return records[:, 1:], check_labels(records[:, 0])


def parse_pickle(data: bytes) -> tuple[UInt8[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
    """Parse a dict with the pixels in "data" and the classes in "labels", without unpickling it."""
    if len(data) > MAX_PICKLE:
        raise ValueError(f"it has {len(data):,} bytes, more than any batch")
    batch = read_inert(data)
    pixels, labels = batch["data"], batch["labels"]
    # A list that holds others many times over would be small here and endless as an array.
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise ValueError("its labels are not a list of numbers")
    labels = np.array(labels)
    if pixels.shape != (len(labels), PIXELS) or len(labels) == 0:
        raise ValueError(f"its data has shape {pixels.shape} for {len(labels)} labels")
    return pixels, check_labels(labels)


def check_labels(labels: np.ndarray) -> Int[np.ndarray, " n"]:
    """Return `labels` as int32. Raises ValueError unless they are classes of CIFAR-10."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max():
        raise ValueError("its labels are not numbers from 0 to 9")
    if labels.max() >= len(CLASSES):
        raise ValueError(f"it has the label {labels.max()}, but labels go from 0 to 9")
    return labels.astype(np.int32)


SUFFIXES: dict[str, Callable[[bytes], tuple[np.ndarray, np.ndarray]]] = {
    "": parse_pickle,
    ".bin": parse_binary,
}
