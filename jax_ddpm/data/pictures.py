"""Decoded pictures of one size and one number of channels, from files or arrays."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from jax_ddpm.errors import UserError
from jax_ddpm.files.untrusted import reason

Crop = Literal["center", "random", "none"]
Resize = Literal["bicubic", "bilinear", "box", "lanczos", "box_bicubic"]
Picture = UInt8[np.ndarray, "h w c"]

MODES = {1: "L", 3: "RGB"}
# What is decoded, whatever a file is called: Pillow has decoders that start other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # they are refused here


class Form(NamedTuple):
    """What pictures are brought to: side, channels, and the way there."""

    size: int | None = None
    channels: int = 3
    crop: Crop = "center"
    resize: Resize = "bicubic"


def fit(
    image: Image.Image,
    size: int | None,
    channels: int,
    crop: Crop = "center",
    resize: Resize = "bicubic",
    place: tuple[float, float] | None = None,
) -> Picture:
    """`image` in grey (1) or colour (3); cut to a square and resized to `size` if given.

    `crop`: the square is the centre, or for random that at `place`, two numbers in [0, 1) from the
    left and from the top, if there is one; none squeezes the whole picture into the square. A
    transparent picture is laid on white.
    """
    image = without_depth_and_transparency(image).convert(MODES[channels])
    if size is not None and image.size != (size, size):
        image = resized(image if crop == "none" else cut(image, place), size, resize)
    array = np.asarray(image, np.uint8)
    return array.reshape(*array.shape[:2], channels)


def cut(image: Image.Image, place: tuple[float, float] | None = None) -> Image.Image:
    """The largest square of `image`: that in its centre, or at `place`."""
    side = min(image.size)
    spare = (image.width - side, image.height - side)
    if place is None:
        left, top = (room // 2 for room in spare)
    else:
        left, top = (int(part * (room + 1)) for part, room in zip(place, spare, strict=True))
    return image.crop((left, top, left + side, top + side))


def resized(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    """`image` with both sides `size`; box_bicubic first halves it for as long as it stays larger.

    That is how OpenAI's improved and guided diffusion shrink their pictures.
    """
    if resize != "box_bicubic":
        return image.resize((size, size), Image.Resampling[resize.upper()])
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image.resize((size, size), Image.Resampling.BICUBIC)


def without_depth_and_transparency(image: Image.Image) -> Image.Image:
    """`image` with 8 bits per channel, laid on white where it is transparent."""
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB", "HSV") else image


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 0..65535 as 0..255; Pillow would cut off what is above 255."""
    shades = np.asarray(image).astype(np.int64)
    if shades.min() < 0 or shades.max() > 65535:
        raise ValueError("it has more than 16 bits per channel")
    grey = Image.fromarray(((shades * 255 + 32767) // 65535).astype(np.uint8))
    if "transparency" in image.info:
        seen = np.where(shades == image.info["transparency"], 0, 255).astype(np.uint8)
        grey.putalpha(Image.fromarray(seen))
    return grey


def open_upright(file: Path | IO[bytes]) -> Image.Image:
    """The picture in a file, decoded, turned as its EXIF data say; of several frames the first.

    Raises many kinds of errors for what is no picture of FORMATS or has more than MAX_PIXELS.
    """
    with Image.open(file, formats=FORMATS) as image:
        require_few_pixels(image)
        turned = ImageOps.exif_transpose(image)
        turned.load()
        return turned


def require_few_pixels(image: Image.Image) -> None:
    """Raise ValueError for a picture that would take more memory than any photograph does."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} are more than {MAX_PIXELS:,} pixels")


def read_picture(
    path: Path,
    size: int | None,
    channels: int,
    crop: Crop = "center",
    resize: Resize = "bicubic",
    place: tuple[float, float] | None = None,
) -> Picture:
    """The picture in a file, upright as its EXIF data say; of a GIF the first frame.

    Raises UserError if the file holds no picture.
    """
    try:
        return fit(open_upright(path), size, channels, crop, resize, place)
    except Exception as error:  # decoders raise errors of every kind for damaged data
        raise UserError(f"{path} cannot be read as a picture: {why(error)}") from error


def why(error: BaseException) -> str:
    """What is wrong with a picture, without repeating its path."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    return reason(error)


def fit_all(
    images: UInt8[np.ndarray, "n h w c"],
    size: int | None,
    channels: int,
    crop: Crop = "center",
    resize: Resize = "bicubic",
) -> UInt8[np.ndarray, "n s s d"]:
    """Every image in `images` through `fit`; the same array where there is nothing to do."""
    if fits(images, size, channels):
        return images
    form = Form(size, channels, crop, resize)
    return np.stack(list(FittedArrays(images, form)))


def fits(images: UInt8[np.ndarray, "n h w c"], size: int | None, channels: int) -> bool:
    """Whether `images` have that size and number of channels already."""
    return images.shape[-1] == channels and (size is None or images.shape[1:3] == (size, size))


def from_array(array: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """The picture of an array with 1, 3 or 4 channels, or of a grey one without that axis."""
    return Image.fromarray(array[..., 0] if array.shape[-1:] == (1,) else array)


class FittedArrays(Sequence[Picture]):
    """Arrays by number, each brought to its form as it is asked for."""

    def __init__(self, arrays: Sequence[np.ndarray] | np.ndarray, form: Form) -> None:
        """`arrays`: uint8 [h, w, c] by number."""
        self.arrays, self.form = arrays, form

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.arrays)

    def __getitem__(self, index: Any) -> Any:
        """Picture number `index`."""
        return self.at(index, None)

    def at(self, index: Any, place: tuple[float, float] | None) -> Any:
        """Picture number `index`, cut at `place`."""
        return fit(from_array(np.asarray(self.arrays[index])), *self.form, place)


class FolderPictures(Sequence[Picture]):
    """The pictures in files, decoded one by one as they are asked for."""

    def __init__(
        self, paths: Sequence[Path], form: Form, size: tuple[int, int] | None = None
    ) -> None:
        """`paths` in the order of their numbers; `size`: the (width, height) that all have."""
        self.paths, self.form, self.size = paths, form, size

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        """Picture number `index`. Raises UserError if it cannot be read any more."""
        return self.at(index, None)

    def at(self, index: Any, place: tuple[float, float] | None) -> Any:
        """Picture number `index`, cut at `place`."""
        picture = read_picture(self.paths[index], *self.form, place)
        if self.size is not None and picture.shape[1::-1] != self.size:
            width, height = self.size
            raise UserError(f"{self.paths[index]} was {width}x{height} and has been replaced")
        return picture
