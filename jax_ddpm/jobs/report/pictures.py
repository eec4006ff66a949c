"""The pictures of a run as data URIs, which a page needs no other file for."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jax_ddpm.data.base import ImageSource
from jax_ddpm.data.loader import batch_indices
from jax_ddpm.data.summary import spread
from jax_ddpm.errors import UserError
from jax_ddpm.files.images import find_scale, make_image_grid
from jax_ddpm.files.untrusted import read_bounded
from jax_ddpm.runs.folder import Run

MAX_SIDE = 760  # pixels; larger pictures are reduced
MAX_BYTES, MAX_PIXELS = 2**28, 2**27  # of a picture in a run folder
LARGE = 300_000  # bytes; larger files are stored as JPEG
MAX_GRIDS, NUM_FRAMES, NUM_STRIPS, NUM_DATA = 24, 8, 4, 32
PADDING = 2  # of an image grid


class Grid(NamedTuple):
    """A sample grid that was drawn while training."""

    step: int
    uri: str


def read_grids(run: Run) -> list[Grid]:
    """Read up to MAX_GRIDS of the run's sample grids, spread evenly, the last one included."""
    files = sorted(run.samples.glob("step_*.png"))
    steps = [path.stem.removeprefix("step_") for path in files]
    found = [(int(s), p) for s, p in zip(steps, files, strict=True) if s.isascii() and s.isdigit()]
    chosen = [found[i] for i in spread(len(found), MAX_GRIDS)]
    return [Grid(step, embed_file(path)) for step, path in sorted(chosen)]


def embed_file(path: Path) -> str:
    """Embed a PNG file, as it is or reduced. Raises UserError if it is no picture."""
    data = read_bounded(path, MAX_BYTES)
    image = open_image(data, path)
    if max(image.size) <= MAX_SIDE and len(data) <= LARGE:
        return _encode(data, "png")
    image = image.convert("RGB")
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return _encode(file.getvalue(), "jpeg")


def open_image(data: bytes, path: Path) -> Image.Image:
    """Open a PNG or GIF file. Raises UserError for anything else, and for a very large picture."""
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "GIF"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a picture that can be read") from error
    if math.prod(image.size) > MAX_PIXELS:
        raise UserError(f"{path} has more than {MAX_PIXELS:,} pixels")
    return image


def embed_pixels(pixels: UInt8[np.ndarray, "h w c"]) -> str:
    """Embed pixels, as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return _encode(file.getvalue(), "png")


def draw_strip(run: Run) -> str | None:
    """Draw the first images of the run's GIF as they emerge from noise, one row per image.

    Returns None if the run has no GIF, or one of another layout than its settings say.
    """
    if not run.final_gif.is_file():
        return None
    gif = open_image(read_bounded(run.final_gif, MAX_BYTES), run.final_gif)
    num = run.config.train.sample_images
    columns = math.ceil(math.sqrt(num))
    rows = math.ceil(num / columns)
    (width, rest_w), (height, rest_h) = (
        divmod(size - PADDING, count) for size, count in zip(gif.size, (columns, rows), strict=True)
    )
    size = run.image_shape[:2]
    tile_h, tile_w = (side * find_scale(*size) for side in size)
    if rest_w or rest_h or width != tile_w + PADDING or height < tile_h + PADDING:
        return None
    frames = []
    for i in spread(getattr(gif, "n_frames", 1), NUM_FRAMES):
        gif.seek(i)
        frames.append(np.asarray(gif.convert("RGB")))
    tiles = [
        frame[PADDING:, PADDING + i * width :][:tile_h, :tile_w]
        for i in range(min(columns, NUM_STRIPS))
        for frame in frames
    ]
    return embed_pixels(make_image_grid(np.stack(tiles), columns=len(frames)))


def draw_data(run: Run, source: ImageSource) -> str:
    """Draw the first images that the run was trained on, as the network gets them."""
    size = min(NUM_DATA, run.config.train.batch_size, len(source.images))
    chosen: Sequence[int] = batch_indices(len(source.images), size, run.config.seed, 0).tolist()
    pixels = np.stack([source.images[i] for i in chosen])
    return embed_pixels(make_image_grid(pixels, columns=min(size, 8)))


def _encode(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
