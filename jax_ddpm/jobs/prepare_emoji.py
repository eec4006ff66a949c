"""The job that draws a data set of emoji."""

from pathlib import Path

from jax_ddpm.data.emoji import SIDE, draw_emoji, save_emoji
from jax_ddpm.errors import require_suffix


def prepare_emoji(font: Path, out: Path) -> Path:
    """Draw the emoji in `font` and write them to `out`. Raises UserError if the font is missing."""
    require_suffix(out, ".npz")
    images = draw_emoji(font)
    save_emoji(out, images)
    print(f"Wrote {out}: {len(images):,} images of {SIDE}x{SIDE}")
    return out
