"""A colour data set for tests and demos: Noto Color Emoji, 32x32."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jax_ddpm.data.pictures import Form, Picture, fit_picture
from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import explain

SIDE = 32


def draw_emoji(font: Path) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Draw the different pictures in a bitmap font (CBDT), on white, in the font's order.

    Raises UserError if there is no such font.
    """
    if not font.is_file():
        raise UserError(
            f"there is no font {font}: apt install fonts-noto-color-emoji, or name one with --font"
        )
    try:
        pictures = [draw_bitmap(png) for png in read_bitmaps(font)]
    except Exception as error:  # fontTools raises many kinds of errors for unsuitable fonts
        raise UserError(f"{font} holds no coloured bitmaps (CBDT): {explain(error)}") from error
    return np.stack(list({picture.tobytes(): picture for picture in pictures}.values()))


def read_bitmaps(font: Path) -> list[bytes]:
    """Read the PNG files in a font, in the order of its glyphs."""
    from fontTools.ttLib import TTFont

    with TTFont(font, lazy=True) as opened:
        glyphs = opened["CBDT"].strikeData[0]
        return [glyphs[name].imageData for name in opened.getGlyphOrder() if name in glyphs]


def draw_bitmap(png: bytes) -> Picture:
    """Draw a bitmap in the middle of a white square, 32x32."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        side = max(image.size)
        square = Image.new("RGBA", (side, side), "white")
        corner = ((side - image.width) // 2, (side - image.height) // 2)
        square.alpha_composite(image.convert("RGBA"), corner)
        return fit_picture(square, Form(SIDE))


def save_emoji(path: Path, images: UInt8[np.ndarray, "n 32 32 3"]) -> None:
    """Write an .npz file for `--data.name arrays`. The same images give the same bytes."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, images=images)

    write_atomically(path, write)
