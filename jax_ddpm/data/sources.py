"""Image sources: random access to uint8 images [h, w, c], which is all that the loader needs."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jax_ddpm.data.idx import read_idx
from jax_ddpm.errors import UserError

SourceName = Literal["embedded", "fashion_mnist"]
Split = Literal["train", "test"]

EMBEDDED = Path(__file__).parent / "fashion_mnist_extract"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IDX_PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}


class ImageSource(NamedTuple):
    """Images held in memory, with their class labels."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: UInt8[np.ndarray, " n"]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels


def open_source(name: SourceName, path: Path | None = None, split: Split = "train") -> ImageSource:
    """The data set called `name`.

    `embedded`: 10,000 + 2,000 Fashion-MNIST images that ship with the package. `fashion_mnist`: the
    IDX files in the folder `path` (MNIST's, which have the same names, work as well).

    Raises UserError if the folder or a file is missing or damaged.
    """
    if name == "embedded":
        if path is not None:
            raise UserError(
                f"--data.path {path} was given without the kind of data in it: "
                "add --data.name fashion_mnist"
            )
        return read_idx_folder(EMBEDDED, split)
    return read_idx_folder(path or DEBIAN_FASHION_MNIST, split)


def read_idx_folder(folder: Path, split: Split = "train") -> ImageSource:
    """The images and labels in a folder of IDX files with MNIST's names, plain or gzipped."""
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}: give one that holds "
            f"{IDX_PREFIX[split]}-images-idx3-ubyte[.gz] with --data.path"
        )
    images = read_idx(_find(folder, f"{IDX_PREFIX[split]}-images-idx3-ubyte"))
    labels = read_idx(_find(folder, f"{IDX_PREFIX[split]}-labels-idx1-ubyte"))
    if images.ndim != 3 or 0 in images.shape:
        raise UserError(
            f"{folder} holds images of shape {images.shape}, expected (number, height, width)"
        )
    if labels.shape != images.shape[:1]:
        raise UserError(f"{folder} holds {len(images)} images but labels of shape {labels.shape}")
    return ImageSource(images[..., None], labels)


def _find(folder: Path, stem: str) -> Path:
    for name in (stem, f"{stem}.gz", stem.replace("-idx", ".idx")):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} does not hold {stem} or {stem}.gz")
