"""Edits of given images, and the functions with which the sampling program makes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from jax_ddpm.config.run import SourceConfig
from jax_ddpm.config.sample import SampleConfig
from jax_ddpm.data.pictures import Form, read_picture
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.build import Parts, list_levels, make_sampler
from jax_ddpm.jobs.generate import NO_EDIT, EditFns, Indices
from jax_ddpm.jobs.messages import tell
from jax_ddpm.process.diffusion import add_noise
from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import DenoiseFn, Images
from jax_ddpm.samplers import Sampler
from jax_ddpm.samplers.editing import (
    allow_steps_up,
    find_latents,
    find_start,
    inpaint,
    mix_noisy,
    repaint_order,
    slerp,
)

Picture = UInt8[np.ndarray, "h w c"]
Mask = Bool[np.ndarray, "h w 1"]
ImageShape = tuple[int, int, int]
AS_STORED = SourceConfig()
DenoiseFirst = Callable[[int], DenoiseFn]


@dataclass(frozen=True)
class Inpaint:
    """Redraw the white part of a mask; all other pixels stay exactly as they are."""

    name: ClassVar[str] = "inpaint"
    image: Path
    """The picture to edit."""
    mask: Path
    """A picture of the same size: white is redrawn, black stays."""
    repaint: tuple[int, int] | None = None
    """(jump, resample): jump back towards noise by `jump` steps, `resample` - 1 times (RePaint);
    None: never."""


@dataclass(frozen=True)
class ImageToImage:
    """Start from a noised picture instead of pure noise (SDEdit)."""

    name: ClassVar[str] = "image"
    image: Path
    """The picture to start from."""
    strength: float = 0.5
    """Fraction of the chain to run, above 0 and at most 1. Less keeps more of the picture."""


@dataclass(frozen=True)
class Interpolation:
    """Draw a row of images from one picture to another."""

    name: ClassVar[str] = "interpolate"
    images: tuple[Path, Path]
    """The ends of the row."""
    method: Literal["ddim", "stochastic"] = "ddim"
    """ddim: trace both pictures back to noise with DDIM, and interpolate the noise. stochastic: add
    the same noise to both pictures, and interpolate the noisy pictures."""
    strength: float = 0.5
    """stochastic: fraction of the chain to run, above 0 and at most 1."""

    @property
    def between_latents(self) -> bool:
        """Whether both pictures are traced back to noise."""
        return self.method == "ddim"


Edit = Inpaint | ImageToImage | Interpolation


def check_edit(edit: Edit | None, num: int) -> None:
    """Raise UserError for an edit that cannot work, before any file is read."""
    if isinstance(edit, Interpolation) and num < 2:
        raise UserError(f"--num is {num}, but --interpolate needs at least 2 images: both ends")
    strength = 1.0 if edit is None or isinstance(edit, Inpaint) else edit.strength
    if not 0 < strength <= 1:
        raise UserError(f"--strength is {strength:g}, but it must be above 0 and at most 1")


def adapt_settings(
    edit: Edit | None, settings: SampleConfig, changes: Mapping[str, Any]
) -> SampleConfig:
    """Choose deterministic DDIM if `edit` traces pictures back to noise; else keep `settings`.

    Raises UserError if the user's own `changes` then ask for another sampler.
    """
    if not isinstance(edit, Interpolation) or not edit.between_latents:
        return settings
    given = f"--eta {changes['eta']:g}" if changes.get("eta") else None
    if changes.get("sampler", "ddim") != "ddim":
        given = f"--sampler {changes['sampler']}"
    if given:
        raise UserError(
            f"{given}: interpolation ddim needs --sampler ddim with --eta 0, which can be traced "
            "back; with other samplers use --interpolation stochastic"
        )
    return replace(settings, sampler="ddim", eta=0.0)


def make_edit_fns(
    edit: Edit | None,
    parts: Parts,
    settings: SampleConfig,
    image_shape: ImageShape,
    num: int,
    data: SourceConfig = AS_STORED,
) -> EditFns:
    """Read the pictures of `edit`, which makes `num` images, and make the program's functions.

    Pictures are read as the images of `data` are. Raises UserError for a file that is not a
    suitable picture, and for a grid of timesteps that cannot start at this strength or jump back by
    this many steps.
    """
    if edit is not None and data.max_value is not None:
        tell(f"Pictures are read like this run's images: the value {data.max_value} is white")
    timesteps = np.asarray(list_levels(parts, settings).t)
    num_timesteps = parts.schedule.num_timesteps
    try:
        match edit:
            case None:
                return NO_EDIT
            case Inpaint():
                if edit.repaint is not None:
                    _require_no_memory(parts, settings, image_shape)
                pictures = read_with_mask(edit.image, edit.mask, image_shape, data)
                return inpainting_fns(*pictures, edit.repaint, len(timesteps) - 1)
            case ImageToImage():
                first = find_start(timesteps, edit.strength, num_timesteps)
                return image_to_image_fns(read_image(edit.image, image_shape, data), first)
        a, b = (read_image(path, image_shape, data) for path in edit.images)
        if edit.between_latents:
            return latent_fns(a, b, num, self_condition=parts.self_condition)
        return stochastic_fns(a, b, num, find_start(timesteps, edit.strength, num_timesteps))
    except ValueError as error:
        raise UserError(str(error)) from error


def _require_no_memory(parts: Parts, settings: SampleConfig, image_shape: ImageShape) -> None:
    """Raise UserError for a sampler that cannot jump back towards noise."""
    sampler = make_sampler(settings, parts.diffusion, parts.schedule, num_steps=1)
    if jax.tree.leaves(sampler.init(jnp.zeros((1, *image_shape))).memory):
        raise UserError(
            f"--repaint-jump jumps back towards noise, which --sampler {settings.sampler} cannot "
            "do: it builds on earlier steps (use ddpm or ddim)"
        )


def inpainting_fns(
    image: Picture, fill: Mask, repaint: tuple[int, int] | None, num_steps: int
) -> EditFns:
    """Redraw the pixels of `fill` on a grid of `num_steps` steps, jumping back as in `repaint`."""
    order = np.arange(num_steps + 1) if repaint is None else repaint_order(num_steps, *repaint)

    def wrap(sampler: Sampler, pictures: Any) -> Sampler:
        image, fill = pictures
        painted = inpaint(sampler, image, ~fill)
        return painted if repaint is None else allow_steps_up(painted)

    return EditFns(
        pictures=(to_floats(image), fill[None]),
        levels=lambda levels: jax.tree.map(lambda field: field[order], levels),
        wrap=wrap,
    )


def image_to_image_fns(image: Picture, first: int) -> EditFns:
    """Start from `image`, noised to level `first` of the grid (SDEdit)."""

    def start(
        x_T: Images, levels: Level, denoise_first: DenoiseFirst, pictures: Any, positions: Any
    ) -> Images:
        return add_noise(pick_first(levels), jnp.broadcast_to(pictures[0], x_T.shape), x_T)

    return EditFns((to_floats(image),), levels=start_at(first), start=start)


def stochastic_fns(a: Picture, b: Picture, num: int, first: int) -> EditFns:
    """Draw a row from `a` to `b`, mixed at level `first` of the grid with the same noise."""

    def start(
        x_T: Images, levels: Level, denoise_first: DenoiseFirst, pictures: Any, positions: Any
    ) -> Images:
        one, other = (jnp.broadcast_to(end, x_T.shape) for end in pictures)
        return mix_noisy(pick_first(levels), (one, other), positions, (x_T, x_T))

    return make_row_fns(a, b, num)._replace(levels=start_at(first), start=start)


def latent_fns(a: Picture, b: Picture, num: int, *, self_condition: bool = False) -> EditFns:
    """Draw a row from `a` to `b`: DDIM finds the noise of each, and slerp interpolates the two."""

    def start(
        x_T: Images, levels: Level, denoise_first: DenoiseFirst, pictures: Any, positions: Any
    ) -> Images:
        both, denoise_fn = jnp.concatenate(pictures), denoise_first(2)
        found = find_latents(denoise_fn, levels, both, self_condition=self_condition)
        one, other = (jnp.broadcast_to(end, x_T.shape) for end in jnp.split(found, 2))
        return slerp(one, other, positions)

    return make_row_fns(a, b, num)._replace(start=start)


def make_row_fns(a: Picture, b: Picture, num: int) -> EditFns:
    """Draw `num` images with the same noise, at positions 0 to 1 between `a` and `b`."""

    def positions(indices: Indices) -> Any:
        return np.minimum(indices / (num - 1), 1.0)

    return EditFns((to_floats(a), to_floats(b)), positions, one_noise=True)


def start_at(first: int) -> Callable[[Level], Level]:
    """Return a function that drops the levels before number `first` from a grid."""
    return lambda levels: jax.tree.map(lambda field: field[first:], levels)


def pick_first(levels: Level) -> Level:
    """The first level of a grid, where the chain starts."""
    return jax.tree.map(lambda field: field[0], levels)


def to_floats(image: Picture) -> Float[np.ndarray, "1 h w c"]:
    """Scale uint8 pixels to [-1, 1], as a batch of one image."""
    return image[None] / 127.5 - 1


def read_image(path: Path, image_shape: ImageShape, data: SourceConfig = AS_STORED) -> Picture:
    """Read a picture in the size and colours of the run, cropped, resized and scaled like `data`.

    Where the data are cropped at random, the middle is kept. Raises UserError if it does not fit.
    """
    height, width, channels = image_shape
    crop = "center" if data.crop == "random" else data.crop
    size = height if height == width else None
    image = read_picture(path, Form(size, channels, crop, data.resize, data.max_value))
    if image.shape != image_shape:
        raise UserError(
            f"{path} is {image.shape[1]}x{image.shape[0]}, but this run's images, which are not "
            f"square, are {width}x{height}: resize it"
        )
    return image


def read_with_mask(
    image: Path, mask: Path, image_shape: ImageShape, data: SourceConfig = AS_STORED
) -> tuple[Picture, Mask]:
    """Read a picture and which pixels to redraw. Raises UserError for a mask of another size."""
    (width, height), (mask_width, mask_height) = read_size(image, data.max_value), read_size(mask)
    if (mask_width, mask_height) not in ((width, height), (image_shape[1], image_shape[0])):
        raise UserError(
            f"--mask {mask} is {mask_width}x{mask_height}, but --inpaint {image} is "
            f"{width}x{height}: make the mask from a copy of the picture"
        )
    pixels = read_image(image, image_shape, data)
    shades = read_image(mask, (*image_shape[:2], 1), replace(data, max_value=None))
    fill = shades >= 128
    if not fill.any():
        raise UserError(f"--mask {mask} has no white pixel, so nothing would be redrawn")
    return pixels, fill


def read_size(path: Path, max_value: int | None = None) -> tuple[int, int]:
    """Read (width, height) of the picture in a file, as it is displayed."""
    height, width, _ = read_picture(path, Form(channels=1, max_value=max_value)).shape
    return width, height
