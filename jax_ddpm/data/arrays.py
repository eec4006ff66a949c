"""Read images from NumPy files: an .npz with common array names, or a memory-mapped .npy."""

from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from jax_ddpm.data.base import ImageSource
from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import explain, read_npy_header, read_npz

IMAGE_NAMES = ("images", "x", "arr_0", "data")
LABEL_NAMES = ("labels", "y", "arr_1")


def open_arrays(path: Path) -> ImageSource:
    """Open the images in a NumPy file, and the labels if an .npz has them; otherwise they are 0.

    Raises UserError unless images are uint8 [n, h, w, c] or [n, h, w], with 1 or 3 channels.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: give an .npz or .npy of images with --data.path")
    if path.suffix == ".npy":
        images = check_images(map_npy(path), path)
        return ImageSource(images, np.zeros(len(images), np.int32))
    if path.suffix != ".npz":
        raise UserError(f"{path} ends in neither .npz nor .npy: give such a file with --data.path")
    arrays = read_npz(path)
    images = check_images(_find_images(arrays, path), path)
    name = next((name for name in LABEL_NAMES if name in arrays), None)
    if name is None:
        return ImageSource(images, np.zeros(len(images), np.int32))
    labels = _check_labels(arrays[name], name, len(images), path)
    return ImageSource(images, labels, _read_class_names(arrays, int(labels.max())))


def map_npy(path: Path) -> np.ndarray:
    """Memory-map the array in an .npy file.

    Raises UserError for a damaged file and for Python objects, which could run code.
    """
    try:
        with path.open("rb") as file:
            read_npy_header(file)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds of errors for damaged files
        raise UserError(f"{path} is not a complete .npy file: {explain(error)}") from error


def check_images(images: np.ndarray, path: Path) -> UInt8[np.ndarray, "n h w c"]:
    """Add a channel axis if there is none. Raises UserError unless these are uint8 images."""
    if images.dtype != np.uint8:
        raise UserError(
            f"{path} holds images of {images.dtype}, expected uint8 from 0 to 255: convert them, "
            "for example with (255 * images).round().astype(numpy.uint8) if they go from 0 to 1"
        )
    shaped = images[..., None] if images.ndim == 3 else images
    if shaped.ndim != 4 or 0 in shaped.shape or shaped.shape[-1] not in (1, 3):
        raise UserError(
            f"{path} holds an array of shape {images.shape}, expected [number, height, width] or "
            "[number, height, width, channels] with 1 or 3 channels"
        )
    return shaped


def _find_images(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    for name in IMAGE_NAMES:
        if name in arrays:
            return arrays[name]
    held = f"the arrays {', '.join(arrays)}" if arrays else "no arrays"
    raise UserError(
        f"{path} holds {held}, but the images must be called one of {', '.join(IMAGE_NAMES)}"
    )


def _read_class_names(arrays: dict[str, np.ndarray], largest: int) -> tuple[str, ...]:
    """The names in the array class_names, if it has one for each class."""
    names = arrays.get("class_names", np.empty(0))
    fits = names.dtype.kind == "U" and names.ndim == 1 and len(names) > largest
    return tuple(names.tolist()) if fits else ()


def _check_labels(
    labels: Shaped[np.ndarray, "..."], name: str, count: int, path: Path
) -> Int[np.ndarray, " n"]:
    whole = np.issubdtype(labels.dtype, np.integer)
    if labels.shape != (count,) or not whole or labels.min() < 0 or labels.max() >= 2**31:
        raise UserError(
            f"{path} holds {count} images, but {name} is {labels.dtype} of shape {labels.shape}: "
            "expected one class number for each image, 0 or more"
        )
    return labels.astype(np.int32)
