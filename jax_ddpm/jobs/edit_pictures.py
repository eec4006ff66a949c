"""The pictures that an edit was given, drawn beside the images that it makes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from jax_ddpm.config.run import SourceConfig
from jax_ddpm.files.images import Pixels
from jax_ddpm.jobs.edit import (
    Edit,
    ImageShape,
    ImageToImage,
    Inpaint,
    Interpolation,
    Picture,
    read_image,
    read_with_mask,
)

ONE_ROW = 8  # so many pictures stand in one row


class Beside(NamedTuple):
    """Pictures that stand before and after the drawn images in a grid, each with its caption."""

    before: tuple[tuple[str, Picture], ...] = ()
    after: tuple[tuple[str, Picture], ...] = ()


NOTHING = Beside()


def read_beside(edit: Edit | None, image_shape: ImageShape, data: SourceConfig) -> Beside:
    """Read the pictures of `edit` as the run's images, `data`, are read, and its mask.

    Raises UserError for a file that is not a suitable picture.
    """
    match edit:
        case Inpaint():
            image, fill = read_with_mask(edit.image, edit.mask, image_shape, data)
            mask = np.broadcast_to(255 * fill.astype(np.uint8), image_shape)
            return Beside((("input", image), ("mask", mask)))
        case ImageToImage():
            return Beside((("input", read_image(edit.image, image_shape, data)),))
        case Interpolation():
            a, b = (read_image(path, image_shape, data) for path in edit.images)
            return Beside((("input", a),), (("input", b),))
    return NOTHING


def add_pictures(images: Pixels, beside: Beside) -> UInt8[np.ndarray, "m h w c"]:
    """Put the pictures of `beside` before and after `images`."""
    before, after = ([pixels[None] for _, pixels in pictures] for pictures in beside)
    return np.concatenate([*before, images, *after])


def add_captions(captions: list[str], num: int, beside: Beside) -> list[str]:
    """Put the captions of `beside` before and after the `captions` of `num` images, if any."""
    if beside == NOTHING:
        return captions
    before, after = ([caption for caption, _ in pictures] for pictures in beside)
    return [*before, *(captions or [""] * num), *after]


def choose_columns(edit: Edit | None, num: int) -> int | None:
    """The columns of a grid of `num` images with the pictures of `edit`; None for a square.

    An interpolation is one row, and so are few images.
    """
    if edit is None:
        return None
    total = num + (1 if isinstance(edit, ImageToImage) else 2)
    return total if total <= ONE_ROW or isinstance(edit, Interpolation) else None
