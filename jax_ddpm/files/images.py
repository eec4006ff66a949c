"""Convert pixels between uint8 and [-1, 1], make image grids, write PNG and GIF files."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from jax_ddpm.files.atomic import write_atomically

Pixels = UInt8[np.ndarray, "n h w c"]
CAPTION, FONT_SIZE = 13, 10  # pixels
SHADE = 17  # 255 / 15: the distance between 16 shades of grey
MIN_TILE = 56  # smaller images are enlarged in image grids, so that people can see them


def from_uint8(pixels: UInt8[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """Scale 0..255 to [-1, 1]: x / 127.5 - 1."""
    return pixels.astype(jnp.float32) / 127.5 - 1


def to_uint8(images: Float[Array, "*b h w c"]) -> UInt8[Array, "*b h w c"]:
    """Scale [-1, 1] to 0..255, rounding and clipping.

    Examples:
        >>> import jax, jax_ddpm as jd
        >>> jd.to_uint8(jax.numpy.array([[[-1.0, 0.0, 1.0]]])).tolist()
        [[[0, 128, 255]]]
    """
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def stretch_to_uint8(images: Float[Array, "*b h w c"]) -> UInt8[Array, "*b h w c"]:
    """Stretch each image to 0..255 by its own range and truncate, as B. Pulfer's GIFs do."""
    low = images.min((-3, -2, -1), keepdims=True)
    high = images.max((-3, -2, -1), keepdims=True)
    return ((images - low) * (255 / jnp.maximum(high - low, 1e-12))).astype(jnp.uint8)


def make_image_grid(
    pixels: Pixels, *, columns: int | None = None, padding: int = 2, captions: Sequence[str] = ()
) -> UInt8[np.ndarray, "H W c"]:
    """Arrange images in rows in one large image, by default a square; enlarge small ones.

    `captions` has a line of text to write below each image, or nothing.

    Examples:
        >>> import jax_ddpm as jd, numpy as np
        >>> grid = jd.make_image_grid(np.zeros((4, 64, 64, 3), np.uint8))  # two rows of two
        >>> grid.shape
        (134, 134, 3)
    """
    n, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = find_scale(height, width)
    line = CAPTION if captions else 0
    cell_h, cell_w = height * scale + line + padding, width * scale + padding
    canvas = np.zeros((rows * cell_h + padding, columns * cell_w + padding, channels), np.uint8)
    for i, image in enumerate(pixels):
        top, left = (i // columns) * cell_h + padding, (i % columns) * cell_w + padding
        tile = image.repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + height * scale, left : left + width * scale] = tile
        if captions:
            below = canvas[top + height * scale :][:line, left : left + width * scale]
            below[:] = draw_caption(captions[i], width * scale)[..., None]
    return canvas


def find_scale(height: int, width: int) -> int:
    """How many times larger an image is shown in a grid."""
    return max(1, MIN_TILE // max(height, width))


def draw_caption(text: str, width: int) -> UInt8[np.ndarray, "h w"]:
    """Draw a line of text, white on black, cut to `width` pixels."""
    image = Image.new("L", (width, CAPTION))
    shown = "".join(c if c.isprintable() else "?" for c in text)
    ImageDraw.Draw(image).text((1, 0), shown, fill=255, font=ImageFont.load_default(FONT_SIZE))
    return np.asarray(image)


def save_png(path: Path, image: UInt8[np.ndarray, "h w c"]) -> None:
    """Write a grey, colour or RGBA image as PNG."""
    write_atomically(path, lambda temporary: _to_pil(image).save(temporary, format="PNG"))


def save_gif(
    path: Path, frames: Sequence[UInt8[np.ndarray, "h w c"]], *, seconds: float = 4.0
) -> None:
    """Write a GIF that shows `frames` for `seconds`, pauses on the last one, and repeats.

    Noise does not compress, so all frames but the last are written in fewer shades.
    """
    first, *rest = [*map(_reduce_shades, frames[:-1]), _to_pil(frames[-1])]
    duration = max(20, 10 * round(100 * seconds / len(frames)))  # GIF counts hundredths of a second
    durations = [duration] * len(rest) + [1500]
    write_atomically(
        path,
        lambda temporary: first.save(
            temporary, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0
        ),
    )


def _reduce_shades(frame: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    """Round a grey frame to 16 shades, and a frame with colours to 64 colours."""
    if frame.shape[-1] == 1:
        return _to_pil((np.round(frame / SHADE) * SHADE).astype(np.uint8))
    method, dither = Image.Quantize.FASTOCTREE, Image.Dither.NONE
    return _to_pil(frame).quantize(64, method=method, dither=dither)


def _to_pil(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
