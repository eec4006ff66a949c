"""The job that draws a data set of emoji."""

from dataclasses import dataclass
from pathlib import Path

from jax_ddpm.data.emoji import SIDE, draw_emoji, save_emoji
from jax_ddpm.errors import UserError


@dataclass(frozen=True)
class EmojiArgs:
    """Draw a colour data set of emoji from the font in Debian's package fonts-noto-color-emoji."""

    font: Path = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    """The font."""
    out: Path = Path("emoji.npz")
    """The file to write: images, uint8 [n, 32, 32, 3]."""


def prepare_emoji(args: EmojiArgs) -> Path:
    """Write the data set and say how to use it. Raises UserError without the font."""
    if args.out.suffix != ".npz":
        raise UserError(f"--out is {args.out}, but it must end in .npz")
    images = draw_emoji(args.font)
    save_emoji(args.out, images)
    print(f"Wrote {args.out}: {len(images):,} images of {SIDE}x{SIDE}")
    print(f"Use it with --data.name arrays --data.path {args.out}")
    return args.out
