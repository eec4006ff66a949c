"""Images in NumPy files: .npz with the usual names, and .npy, which is mapped into memory."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import read_npy_header, read_npz, reason

IMAGES = ("images", "x", "arr_0", "data")
LABELS = ("labels", "y", "arr_1")


class Arrays(NamedTuple):
    """Images and their classes."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]


def open_arrays(path: Path) -> Arrays:
    """The images in a NumPy file, and their labels if an .npz has them; else the class is 0.

    Raises UserError for anything but uint8 [n, h, w, c] or [n, h, w], with 1 or 3 channels.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: give an .npz or .npy of images, --data.path")
    if path.suffix == ".npy":
        images = checked(read_npy(path), path)
        return Arrays(images, np.zeros(len(images), np.int32))
    if path.suffix != ".npz":
        raise UserError(f"{path} ends in neither .npz nor .npy: give such a file, --data.path")
    found = read_npz(path)
    images = checked(_named(found, IMAGES, path), path)
    names = [name for name in LABELS if name in found]
    if not names:
        return Arrays(images, np.zeros(len(images), np.int32))
    return Arrays(images, _checked_labels(found[names[0]], names[0], len(images), path))


def read_npy(path: Path) -> np.ndarray:
    """The array in an .npy file, mapped into memory.

    Raises UserError for a damaged file and for Python objects, which could run code.
    """
    try:
        with path.open("rb") as file:
            read_npy_header(file)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds for damaged files
        raise UserError(f"{path} is not a whole .npy file: {reason(error)}") from error


def checked(images: np.ndarray, path: Path) -> UInt8[np.ndarray, "n h w c"]:
    """`images` with an axis of channels. Raises UserError if they are not uint8 images."""
    if images.dtype != np.uint8:
        raise UserError(
            f"{path} holds images of {images.dtype}, expected uint8 from 0 to 255: convert them, "
            "for instance with (255 * images).round().astype(numpy.uint8) if they go from 0 to 1"
        )
    shaped = images[..., None] if images.ndim == 3 else images
    if shaped.ndim != 4 or 0 in shaped.shape or shaped.shape[-1] not in (1, 3):
        raise UserError(
            f"{path} holds an array of shape {images.shape}, expected [number, height, width] or "
            "[number, height, width, channels] with 1 or 3 channels"
        )
    return shaped


def _named(found: dict[str, np.ndarray], names: tuple[str, ...], path: Path) -> np.ndarray:
    for name in names:
        if name in found:
            return found[name]
    raise UserError(
        f"{path} holds the arrays {', '.join(found) or 'of nothing'}, but none called "
        f"{', '.join(names)}: give the images one of these names"
    )


def _checked_labels(labels: Any, name: str, count: int, path: Path) -> Int[np.ndarray, " n"]:
    whole = np.issubdtype(labels.dtype, np.integer)
    if labels.shape != (count,) or not whole or labels.min() < 0 or labels.max() >= 2**31:
        raise UserError(
            f"{path} holds {count} images, but {name} is {labels.dtype} of shape {labels.shape}: "
            "expected one class number for each, 0 or more"
        )
    return labels.astype(np.int32)
