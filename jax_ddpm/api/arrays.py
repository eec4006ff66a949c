"""Images and labels from Python as a source for the training job."""

from typing import Any

import numpy as np

from jax_ddpm.api.checks import check_shape
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.errors import UserError


def make_source(images: Any, labels: Any = None) -> ImageSource:
    """Make a source from uint8 images [n, h, w, c] or [n, h, w] and their classes [n].

    Without labels, every class is 0. Raises UserError for anything else, suggesting a conversion.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise UserError(
            f"images are {images.dtype}, but fit takes uint8 pixels: {suggest_conversion(images)}"
        )
    images = images[..., None] if images.ndim == 3 else images
    check_shape(images.shape, "images have shape")
    if images.shape[-1] not in (1, 3):
        raise UserError(f"images have {images.shape[-1]} channels, but need 1 (grey) or 3 (colour)")
    if labels is None:
        return ImageSource(images, np.zeros(len(images), np.int32))
    labels = np.asarray(labels)
    whole = np.issubdtype(labels.dtype, np.integer)
    if labels.shape != images.shape[:1] or not whole or labels.min() < 0:
        raise UserError(
            f"labels are {labels.dtype} of shape {labels.shape}, but must be one class number for "
            f"each of the {len(images)} images, 0 or more"
        )
    return ImageSource(images, labels.astype(np.int32))


def suggest_conversion(images: np.ndarray) -> str:
    """Suggest how to convert these images to pixels, judging by their range."""
    if images.size == 0 or not np.issubdtype(images.dtype, np.number):
        return "give an array of numbers from 0 to 255"
    low, high = images.min(), images.max()
    if np.issubdtype(images.dtype, np.integer):
        return f'they go from {low} to {high}; if that is 0 to 255, images.astype("uint8")'
    if low >= 0 and high <= 1:
        return 'if they go from 0 to 1, (255 * images).round().astype("uint8")'
    if low >= -1 and high <= 1:
        return "if they go from -1 to 1, np.asarray(jd.to_uint8(images))"
    return f'they go from {low:g} to {high:g}; if that is 0 to 255, images.round().astype("uint8")'
