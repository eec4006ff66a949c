"""Image sources: random access to uint8 images [h, w, c], which is all that the loader needs."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from jax_ddpm.data.idx import read_idx
from jax_ddpm.data.pictures import FolderPictures, common_size, find_pictures, fit_all, labels_of
from jax_ddpm.errors import UserError

SourceName = Literal["embedded", "fashion_mnist", "folder"]
Split = Literal["train", "test"]

EMBEDDED = Path(__file__).parent / "fashion_mnist_extract"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IDX_PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}


class ImageSource(NamedTuple):
    """Images by number, in memory or decoded as they are asked for, with their class labels."""

    images: Any  # len(images), images[i] -> uint8 [h, w, c]
    labels: Int[np.ndarray, " n"]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.images[0].shape
        return height, width, channels


def open_source(
    name: SourceName,
    path: Path | None = None,
    split: Split = "train",
    *,
    image_size: int | None = None,
    channels: int | None = None,
) -> ImageSource:
    """The data set called `name`.

    `embedded`: 10,000 + 2,000 Fashion-MNIST images that ship with the package. `fashion_mnist`: the
    IDX files in the folder `path` (MNIST's, which have the same names, work as well). `folder`: all
    pictures below `path`, their first subfolder the class. `image_size` cuts each to a centred
    square and resizes it; `channels` makes it grey (1) or colour (3, the default of a folder).

    Raises UserError if the folder or a file is missing or damaged.
    """
    if name == "folder":
        if path is None:
            raise UserError("--data.name folder needs the folder of pictures, --data.path DIR")
        return open_folder(path, image_size, channels or 3)
    if name == "embedded" and path is not None:
        raise UserError(
            f"--data.path {path} was given without the kind of data in it: "
            "add --data.name fashion_mnist or --data.name folder"
        )
    folder = EMBEDDED if name == "embedded" else path or DEBIAN_FASHION_MNIST
    images, labels = read_idx_folder(folder, split)
    return ImageSource(fit_all(images, image_size, channels or images.shape[-1]), labels)


def open_folder(folder: Path, image_size: int | None, channels: int) -> ImageSource:
    """The pictures in `folder` and below it."""
    paths = find_pictures(folder)
    if image_size is None:
        common_size(paths)
    return ImageSource(FolderPictures(paths, image_size, channels), labels_of(paths, folder))


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
