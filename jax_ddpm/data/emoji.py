"""A colour data set for tests and demos: the emoji of Noto Color Emoji, 32x32."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jax_ddpm.data.pictures import Picture, fit
from jax_ddpm.errors import UserError
from jax_ddpm.files.atomic import write_atomically
from jax_ddpm.files.untrusted import reason

SIDE = 32


@dataclass(frozen=True)
class EmojiArgs:
    """Make a data set of emoji from the font of Debian's package fonts-noto-color-emoji."""

    font: Path = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    """The font."""
    out: Path = Path("emoji.npz")
    """The file to write: images, uint8 [n, 32, 32, 3]."""


def run(args: EmojiArgs) -> Path:
    """Write the data set and say how to use it. Raises UserError without the font."""
    if args.out.suffix != ".npz":
        raise UserError(f"--out is {args.out}, but it must end in .npz")
    images = draw_emoji(args.font)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, images=images)

    write_atomically(args.out, write)
    print(f"Wrote {args.out}: {len(images):,} images of {SIDE}x{SIDE}")
    print(f"Use it with --data.name arrays --data.path {args.out}")
    return args.out


def draw_emoji(font: Path) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Every different picture in a font of bitmaps (CBDT), on white, in the order of the font.

    Raises UserError if there is no such font.
    """
    if not font.is_file():
        raise UserError(
            f"there is no font {font}: apt install fonts-noto-color-emoji, or name one with --font"
        )
    try:
        pictures = [draw(png) for png in bitmaps(font)]
    except Exception as error:  # fontTools raises many kinds for other or damaged fonts
        raise UserError(f"{font} holds no coloured bitmaps (CBDT): {reason(error)}") from error
    return np.stack(list({picture.tobytes(): picture for picture in pictures}.values()))


def bitmaps(font: Path) -> list[bytes]:
    """The PNG files in a font, in the order of its glyphs."""
    from fontTools.ttLib import TTFont

    with TTFont(font, lazy=True) as opened:
        glyphs = opened["CBDT"].strikeData[0]
        return [glyphs[name].imageData for name in opened.getGlyphOrder() if name in glyphs]


def draw(png: bytes) -> Picture:
    """A bitmap in the middle of a white square, 32x32."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        side = max(image.size)
        square = Image.new("RGBA", (side, side), "white")
        corner = ((side - image.width) // 2, (side - image.height) // 2)
        square.alpha_composite(image.convert("RGBA"), corner)
        return fit(square, SIDE, 3)
