"""Decoded pictures of one size and one number of channels, from files or arrays."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from jax_ddpm.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}
MODES = {1: "L", 3: "RGB"}

Picture = UInt8[np.ndarray, "h w c"]


def fit(image: Image.Image, size: int | None, channels: int) -> Picture:
    """`image` in grey (1) or colour (3); cut to a centred square and resized to `size` if given.

    A transparent picture is laid on white.
    """
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert(MODES[channels])
    if size is not None and image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    array = np.asarray(image, np.uint8)
    return array.reshape(*array.shape[:2], channels)


def read_picture(path: Path, size: int | None, channels: int) -> Picture:
    """The picture in a file, upright as its EXIF data say; of a GIF the first frame.

    Raises UserError if the file holds no picture.
    """
    try:
        with Image.open(path) as image:
            return fit(ImageOps.exif_transpose(image), size, channels)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture: {error}") from error


def fit_all(
    images: UInt8[np.ndarray, "n h w c"], size: int | None, channels: int
) -> UInt8[np.ndarray, "n s s d"]:
    """Every image in `images` through `fit`; the same array where there is nothing to do."""
    if images.shape[-1] == channels and (size is None or images.shape[1:3] == (size, size)):
        return images
    pictures = (Image.fromarray(i[..., 0] if i.shape[-1] == 1 else i) for i in images)
    return np.stack([fit(picture, size, channels) for picture in pictures])


class FolderPictures(Sequence[Picture]):
    """The pictures in files, decoded one by one as they are asked for."""

    def __init__(self, paths: Sequence[Path], size: int | None, channels: int) -> None:
        """`paths` in the order of their numbers."""
        self.paths, self.size, self.channels = paths, size, channels

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """Picture number `index`."""
        return read_picture(self.paths[index], self.size, self.channels)


def find_pictures(folder: Path) -> list[Path]:
    """Every picture file in `folder` and below it, in order of name. Raises UserError for none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give one that holds pictures, --data.path")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"{folder} holds no picture ({', '.join(sorted(SUFFIXES))})")
    return paths


def labels_of(paths: Sequence[Path], folder: Path) -> np.ndarray:
    """Class numbers: the position of each picture's first subfolder among all of them."""
    classes = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in paths]
    numbers = {name: i for i, name in enumerate(sorted(set(classes)))}
    return np.array([numbers[name] for name in classes], np.int32)


def common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """The (width, height) that all pictures share. Raises UserError if two differ."""
    sizes: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.setdefault(image.size, path)
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"{path} cannot be read as a picture: {error}") from error
        if len(sizes) > 1:
            (one, first), (other, second) = sizes.items()
            raise UserError(
                f"{first} is {one[0]}x{one[1]} and {second} {other[0]}x{other[1]}: "
                "give the side that all shall have, --data.image-size"
            )
    return next(iter(sizes))
