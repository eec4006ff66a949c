"""uint8 pixels <-> [-1, 1], sample grids and GIFs."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from jax_ddpm.files.atomic import write_atomically

Pixels = UInt8[np.ndarray, "n h w c"]
MIN_TILE = 56  # smaller images are enlarged in grids, so that a person sees something


def from_uint8(pixels: UInt8[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """0..255 to [-1, 1]: x / 127.5 - 1."""
    return pixels.astype(jnp.float32) / 127.5 - 1


def to_uint8(images: Float[Array, "*b h w c"]) -> UInt8[Array, "*b h w c"]:
    """[-1, 1] to 0..255, clipped and rounded."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def stretch_to_uint8(images: Float[Array, "*b h w c"]) -> UInt8[Array, "*b h w c"]:
    """Each image to 0..255 by its own smallest and largest value, truncated (B. Pulfer's GIFs)."""
    low = images.min((-3, -2, -1), keepdims=True)
    high = images.max((-3, -2, -1), keepdims=True)
    return ((images - low) * (255 / jnp.maximum(high - low, 1e-12))).astype(jnp.uint8)


def grid(
    pixels: Pixels, *, columns: int | None = None, padding: int = 2
) -> UInt8[np.ndarray, "h w c"]:
    """One image with all of `pixels` in rows, as square as can be, small ones enlarged."""
    n, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = max(1, MIN_TILE // max(height, width))
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    cell_h, cell_w = height * scale + padding, width * scale + padding
    canvas = np.zeros((rows * cell_h + padding, columns * cell_w + padding, channels), np.uint8)
    for i, image in enumerate(pixels):
        top, left = (i // columns) * cell_h + padding, (i % columns) * cell_w + padding
        canvas[top : top + height * scale, left : left + width * scale] = image
    return canvas


def save_png(path: Path, image: UInt8[np.ndarray, "h w c"]) -> None:
    """Write a grey, colour or RGBA image as PNG."""
    write_atomically(path, lambda temporary: _pil(image).save(temporary, format="PNG"))


def save_gif(
    path: Path, frames: Sequence[UInt8[np.ndarray, "h w c"]], *, seconds: float = 4.0
) -> None:
    """Write an endless GIF that shows `frames` in `seconds` and then rests on the last one."""
    first, *rest = [_pil(frame) for frame in frames]
    duration = max(20, 10 * round(100 * seconds / len(frames)))  # GIF counts hundredths of a second
    durations = [duration] * len(rest) + [1500]
    write_atomically(
        path,
        lambda temporary: first.save(
            temporary, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0
        ),
    )


def _pil(image: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
