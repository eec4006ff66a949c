"""Image sources: random access to uint8 images [h, w, c], which is all that the loader needs."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from jax_ddpm.data.arrays import open_arrays
from jax_ddpm.data.folder import IN_MEMORY, open_folder
from jax_ddpm.data.idx import read_idx
from jax_ddpm.data.pictures import Crop, FittedArrays, Form, Resize, fit_all, fits
from jax_ddpm.data.tfds_reader import open_prepared
from jax_ddpm.errors import UserError

SourceName = str  # one of SOURCES, or the name of a data set of TensorFlow Datasets
SOURCES = ("embedded", "fashion_mnist", "idx", "arrays", "folder")
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
    crop: Crop = "center",
    resize: Resize = "bicubic",
    skip_bad: bool = False,
    tell: Callable[[str], object] = print,
) -> ImageSource:
    """The data set called `name`.

    `embedded`: 10,000 + 2,000 Fashion-MNIST images that ship with the package. `idx`: the IDX files
    with MNIST's names in the folder `path`; `fashion_mnist`: the same, by default where Debian
    keeps them. `arrays`: the .npz or .npy file `path`. `folder`: all pictures below `path`, their
    first subfolder the class; with `skip_bad`, those that can be read, and `tell` says how many are
    left out. Any other name is that of a data set that TensorFlow Datasets has prepared in `path`.
    `image_size` cuts each image to a square, by `crop`, and resizes it, by `resize`; `channels`
    makes it grey (1) or colour (3, the default of a folder).

    Raises UserError if the data are missing, damaged, or have no such split.
    """
    require_known(name, path, split)
    form = Form(image_size, channels or 3, crop, resize)
    if name == "folder" and path is not None:
        return ImageSource(*open_folder(path, form, skip_bad=skip_bad, tell=tell))
    if name not in SOURCES or _holds_prepared(name, path):
        return ImageSource(*open_prepared(name, path, split, form, channels))
    images, labels = _read_arrays(name, path, split)
    form = form._replace(channels=channels or images.shape[-1])
    return ImageSource(fitted(images, form), labels)


def require_known(name: SourceName, path: Path | None, split: Split = "train") -> None:
    """Raise UserError for a misspelt name, a path that is missing or not needed, or no split."""
    if name not in SOURCES and not (path is not None and (path / name).is_dir()):
        close = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.85)
        if close:
            raise UserError(f"there is no data set {name}, did you mean --data.name {close[0]}?")
    needed = {"folder": "the folder of pictures, --data.path DIR",
              "idx": "the folder of IDX files, --data.path DIR",
              "arrays": "the .npz or .npy file, --data.path FILE"}  # fmt: skip
    if path is None and name in needed:
        raise UserError(f"--data.name {name} needs {needed[name]}")
    if name == "embedded" and path is not None:
        raise UserError(
            f"--data.path {path} was given without the kind of data in it: "
            "add --data.name fashion_mnist, idx, arrays or --data.name folder"
        )
    if split == "test" and name in ("folder", "arrays"):
        kind = {"folder": "a folder of pictures", "arrays": "a file of arrays"}[name]
        raise UserError(f"--split test: {kind} has no images set aside for tests")


def fitted(images: np.ndarray, form: Form) -> Any:
    """`images` in `form`: at once if they are few and cut in one way, else one by one."""
    if fits(images, form.size, form.channels):
        return images
    side = form.size or max(images.shape[1:3])
    if form.crop != "random" and len(images) * side**2 * form.channels <= IN_MEMORY:
        return fit_all(images, *form)
    return FittedArrays(images, form)


def _read_arrays(name: SourceName, path: Path | None, split: Split) -> ImageSource:
    if name == "arrays" and path is not None:
        return ImageSource(*open_arrays(path))
    return read_idx_folder(EMBEDDED if name == "embedded" else path or DEBIAN_FASHION_MNIST, split)


def _holds_prepared(name: SourceName, path: Path | None) -> bool:
    """Whether `path` is where TFDS keeps a data set that has the name of one of SOURCES."""
    return path is not None and name in SOURCES and any(path.glob(f"{name}/*/dataset_info.json"))


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
