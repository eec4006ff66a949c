"""Bring pictures from files or arrays to one size and one number of channels."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from jax_ddpm.errors import UserError, check_choice
from jax_ddpm.files.untrusted import explain

Picture = UInt8[np.ndarray, "h w c"]
Position = tuple[float, float]
"""Where a square lies in a picture: distances from the left and the top, in [0, 1)."""

MODES = {1: "L", 3: "RGB"}
# Only these are decoded, whatever a file is called: Pillow runs other programs for some formats.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of a TIFF
MAX_PIXELS = 89_478_485  # above this, Pillow warns of decompression bombs
# We refuse decompression bombs and damaged pictures, and Pillow warns of what it can ignore.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")
IN_MEMORY = 2**28  # data sets of at most 256 MiB are decoded immediately and kept in memory


def crop_center(image: Image.Image, position: Position | None) -> Image.Image:
    """Crop the largest square in the centre of `image`."""
    return crop_at(image, None)


def crop_at(image: Image.Image, position: Position | None) -> Image.Image:
    """Crop the largest square of `image` at `position`, or in the centre if that is None."""
    side = min(image.size)
    spare = (image.width - side, image.height - side)
    if position is None:
        left, top = (room // 2 for room in spare)
    else:
        left, top = (int(part * (room + 1)) for part, room in zip(position, spare, strict=True))
    return image.crop((left, top, left + side, top + side))


CROPS: dict[str, Callable[[Image.Image, Position | None], Image.Image]] = {
    "center": crop_center,
    "random": crop_at,
    "none": lambda image, position: image,
}


def _make_resize(filter_: Image.Resampling) -> Callable[[Image.Image, int], Image.Image]:
    return lambda image, size: image.resize((size, size), filter_)


def halve_and_resize(image: Image.Image, size: int) -> Image.Image:
    """Halve `image` with a box filter while it is at least twice as large, then resize it.

    OpenAI's improved-diffusion and guided-diffusion do this.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image.resize((size, size), Image.Resampling.BICUBIC)


RESIZES: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "bicubic": _make_resize(Image.Resampling.BICUBIC),
    "bilinear": _make_resize(Image.Resampling.BILINEAR),
    "box": _make_resize(Image.Resampling.BOX),
    "lanczos": _make_resize(Image.Resampling.LANCZOS),
    "box_bicubic": halve_and_resize,
}
if TYPE_CHECKING:
    Crop = str
    Resize = str
else:
    Crop = Literal[tuple(CROPS)]
    Resize = Literal[tuple(RESIZES)]


class Form(NamedTuple):
    """The size and channels that pictures are brought to, and how."""

    size: int | None = None
    """Side of the square; None: pictures keep their size."""
    channels: int = 3
    crop: Crop = "center"
    resize: Resize = "bicubic"
    max_value: int | None = None
    """The value in the files that means white; None: the largest that the format can hold."""

    def check(self) -> "Form":
        """Return this form. Raises UserError for a crop or filter that does not exist."""
        return self._replace(
            crop=check_choice("crop", self.crop, CROPS),
            resize=check_choice("resize", self.resize, RESIZES),
        )

    @property
    def is_random(self) -> bool:
        """Whether a picture is cropped differently each time it is read."""
        return self.size is not None and self.crop == "random"

    def fits(self, images: UInt8[np.ndarray, "n h w c"]) -> bool:
        """Whether `images` already have this size, number of channels and range of values."""
        right_size = self.size is None or images.shape[1:3] == (self.size, self.size)
        same_values = self.max_value is None
        return right_size and same_values and images.shape[-1] == self.channels

    def fits_in_memory(self, count: int, size: tuple[int, int]) -> bool:
        """Whether to decode `count` pictures of `size` immediately, not on demand."""
        height, width = size
        return not self.is_random and count * height * width * self.channels <= IN_MEMORY


def fit_picture(image: Image.Image, form: Form, position: Position | None = None) -> Picture:
    """Bring `image` to `form`, on white. Only a random crop uses `position`."""
    image = flatten_to_8_bits(image, form.max_value).convert(MODES[form.channels])
    if form.size is not None and image.size != (form.size, form.size):
        image = RESIZES[form.resize](CROPS[form.crop](image, position), form.size)
    array = np.asarray(image, np.uint8)
    return array.reshape(*array.shape[:2], form.channels)


def flatten_to_8_bits(image: Image.Image, max_value: int | None = None) -> Image.Image:
    """Convert `image` to 8 bits per channel, with white behind transparent parts.

    Values are scaled so that `max_value` becomes 255. Raises ValueError if that is impossible.
    """
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits, or floating-point numbers
        image = _reduce_wide_values(image, max_value)
    elif max_value is not None:
        image = _stretch_8_bits(image, max_value)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB", "HSV") else image


def _reduce_wide_values(image: Image.Image, max_value: int | None) -> Image.Image:
    """Scale grey values from 0..65535 or 0..max_value to 0..255; Pillow would clip them at 255."""
    shades = np.asarray(image).astype(np.float64)
    if image.mode == "F" and max_value is None:
        raise ValueError("it holds floating-point numbers: say with --data.max-value what is white")
    if not (shades.min() >= 0 and (max_value is not None or shades.max() <= 65535)):
        raise ValueError("it has negative values or more than 16 bits per channel")
    scaled = np.floor(shades * 255 / (max_value or 65535) + 0.5)
    grey = Image.fromarray(np.minimum(scaled, 255).astype(np.uint8))
    if "transparency" in image.info:
        seen = np.where(shades == image.info["transparency"], 0, 255).astype(np.uint8)
        grey.putalpha(Image.fromarray(seen))
    return grey


def _stretch_8_bits(image: Image.Image, max_value: int) -> Image.Image:
    """Scale the values of each channel from 0..max_value to 0..255; transparency stays."""
    if max_value > 255:
        raise ValueError(f"its values go up to 255, but white is {max_value} (--data.max-value)")
    transparent = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA")
    image = image.convert("RGBA" if transparent else "L" if image.mode in ("1", "L") else "RGB")
    scaled = [min((value * 255 + max_value // 2) // max_value, 255) for value in range(256)]
    colours = 3 if image.mode.startswith("RGB") else 1
    return image.point(scaled * colours + list(range(256)) * (len(image.getbands()) - colours))


def open_upright(file: Any) -> Image.Image:
    """Open the picture in a path or binary file, rotated as EXIF says; the first of its frames.

    Raises errors of many kinds unless it is in one of FORMATS and has at most MAX_PIXELS pixels.
    """
    if isinstance(file, str | Path):  # Pillow 13 mixes up the pixels of a rotated TIFF in a path
        with open(file, "rb") as opened:
            return open_upright(opened)
    with Image.open(file, formats=FORMATS) as image:
        require_few_pixels(image)
        turned = ImageOps.exif_transpose(image)
        turned.load()
        return turned


def require_few_pixels(image: Image.Image) -> None:
    """Raise ValueError for a picture with more than MAX_PIXELS pixels, larger than any photo.

    A TIFF may be made of tiles, and a single one could be larger than the picture.
    """
    sizes = [image.size]
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        sizes.append((tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1)))
    for width, height in sizes:
        if not (isinstance(width, int) and isinstance(height, int)):
            raise ValueError("the size of its tiles is no number")
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} is more than {MAX_PIXELS:,} pixels")


def read_picture(path: Path, form: Form, position: Position | None = None) -> Picture:
    """Read the picture in a file and bring it to `form`. Raises UserError if there is none."""
    try:
        return fit_picture(open_upright(path), form, position)
    except Exception as error:  # decoders raise errors of every kind for damaged data
        raise UserError(f"{path} cannot be read as a picture: {explain_decoding(error)}") from error


def explain_decoding(error: BaseException) -> str:
    """Explain why a picture cannot be decoded, without its path."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    return explain(error)


def from_array(array: UInt8[np.ndarray, "h w *c"]) -> Image.Image:
    """Convert an array [h, w] or [h, w, c] with 1, 3 or 4 channels to a picture."""
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


class FittedArrays(Sequence[Picture]):
    """Pictures from arrays, each brought to a form on demand."""

    def __init__(self, arrays: Sequence[np.ndarray] | np.ndarray, form: Form) -> None:
        self.arrays, self.form = arrays, form

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: Any) -> Any:
        return self.cut_at(index, None)

    def cut_at(self, index: Any, position: Position | None) -> Any:
        """Return picture number `index`, cropped at `position`."""
        return fit_picture(from_array(np.asarray(self.arrays[index])), self.form, position)


class FolderPictures(Sequence[Picture]):
    """Pictures from files, each decoded on demand."""

    def __init__(
        self, paths: Sequence[Path], form: Form, size: tuple[int, int] | None = None
    ) -> None:
        """`size`: (width, height) of every picture, if the form does not set it."""
        self.paths, self.form, self.size = paths, form, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return self.cut_at(index, None)

    def cut_at(self, index: Any, position: Position | None) -> Any:
        """Return picture number `index`, cropped at `position`.

        Raises UserError if the file is gone, damaged or of another size.
        """
        picture = read_picture(self.paths[index], self.form, position)
        if self.size is not None and picture.shape[1::-1] != self.size:
            width, height = self.size
            raise UserError(f"{self.paths[index]} is no longer {width}x{height}: restore it")
        return picture
