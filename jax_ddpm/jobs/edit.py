"""The part of the sampling job that begins with given images: what is read, and what is done."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jax_ddpm.config.sample import SampleConfig
from jax_ddpm.data.pictures import Form, read_picture
from jax_ddpm.errors import UserError
from jax_ddpm.jobs.generate import NO_EDIT, Edit
from jax_ddpm.process.diffusion import add_noise
from jax_ddpm.process.levels import Level
from jax_ddpm.process.types import Images
from jax_ddpm.samplers import Sampler
from jax_ddpm.samplers.editing import (
    go_up_too,
    inpaint,
    invert_ddim,
    latents,
    mix_noisy,
    repaint_order,
    slerp,
    start_below,
)

Picture = UInt8[np.ndarray, "h w c"]
Mask = Bool[np.ndarray, "h w 1"]
KINDS = ("inpaint", "image", "interpolate")
STRENGTH, REPAINT = 0.5, 10


@dataclass(frozen=True, kw_only=True)
class EditArgs:
    """The flags of sampling that begins with given images; pictures are cut and resized to fit."""

    inpaint: Path | None = None
    """Picture of which a part is drawn anew; the rest stays exactly as it is."""
    mask: Path | None = None
    """Picture of the size of --inpaint, white where it is drawn anew and black where it stays."""
    repaint_jump: int | None = None
    """Steps by which inpainting goes back up, so that old and new agree (RePaint); default: 10 with
    --repaint-resample, else never."""
    repaint_resample: int | None = None
    """How often each part of the way is gone (RePaint); default: 10 with --repaint-jump."""
    image: Path | None = None
    """Picture to begin with, noised by --strength, in place of pure noise."""
    strength: float | None = None
    """Part of the chain that is run, for --image and stochastic interpolation: the smaller, the
    more is kept; above 0, at most 1. Default: 0.5."""
    interpolate: tuple[Path, Path] | None = None
    """Two pictures, the ends of a row of --num images."""
    interpolation: Literal["ddim", "stochastic"] | None = None
    """ddim (default): between the noises to which DDIM traces both pictures back. stochastic:
    between both pictures with the same noise, of the strength given."""


def require_sense(args: EditArgs, num: int) -> None:
    """Raise UserError, in one sentence, for flags that do not fit together."""
    kinds = [f"--{kind}" for kind in KINDS if getattr(args, kind) is not None]
    if len(kinds) > 1:
        raise UserError(f"{' and '.join(kinds)} cannot be combined: give one of them")
    if (args.inpaint is None) != (args.mask is None):
        raise UserError("--inpaint IMAGE and --mask MASK need each other: give both")
    if args.inpaint is None and repaint_settings(args) is not None:
        raise UserError("--repaint-jump and --repaint-resample need --inpaint IMAGE --mask MASK")
    if args.interpolate is None and args.interpolation is not None:
        raise UserError(f"--interpolation {args.interpolation} needs --interpolate A B")
    if args.interpolate is not None and num < 2:
        raise UserError(f"--num is {num}, but --interpolate needs at least 2: both ends")
    with_strength = args.image is not None or args.interpolation == "stochastic"
    if args.strength is not None and not with_strength:
        raise UserError(
            f"--strength {args.strength:g} needs --image IMAGE, or --interpolate A B with "
            "--interpolation stochastic"
        )
    if args.strength is not None and not 0 < args.strength <= 1:
        raise UserError(f"--strength is {args.strength:g}, but it must be above 0 and at most 1")


def interpolation_settings(args: EditArgs, given: SampleConfig) -> SampleConfig:
    """`given`, with the deterministic DDIM that interpolation between latents needs."""
    if args.interpolate is None or args.interpolation == "stochastic":
        return given
    return replace(given, sampler="ddim", eta=0.0)


def kind_of(args: EditArgs) -> str | None:
    """The name of what is done with given images, if anything is."""
    kinds = [kind for kind in KINDS if getattr(args, kind) is not None]
    return kinds[0] if kinds else None


def make_edit(
    args: EditArgs,
    image_shape: tuple[int, int, int],
    *,
    num: int,
    timesteps: Any,
    num_timesteps: int,
    self_condition: bool = False,
) -> Edit:
    """What `args` asks for, with its pictures read.

    `timesteps` is the grid of the job and T = `num_timesteps`. Raises UserError for a file that is
    no picture or does not fit, and for a grid that cannot be cut or repeated so.
    """
    strength = STRENGTH if args.strength is None else args.strength
    try:
        if args.inpaint is not None and args.mask is not None:
            pictures = read_with_mask(args.inpaint, args.mask, image_shape)
            return inpainting(*pictures, repaint_settings(args), len(timesteps) - 1)
        if args.image is not None:
            first = start_below(timesteps, strength, num_timesteps)
            return image_to_image(read_image(args.image, image_shape), first)
        if args.interpolate is None:
            return NO_EDIT
        a, b = (read_image(path, image_shape) for path in args.interpolate)
        if args.interpolation == "stochastic":
            return stochastic(a, b, num, start_below(timesteps, strength, num_timesteps))
        return between_latents(a, b, num, self_condition=self_condition)
    except ValueError as error:
        raise UserError(str(error)) from error


def repaint_settings(args: EditArgs) -> tuple[int, int] | None:
    """(jump, resample) if one of them is given; the other is then 10."""
    jump, resample = args.repaint_jump, args.repaint_resample
    if jump is None and resample is None:
        return None
    return REPAINT if jump is None else jump, REPAINT if resample is None else resample


def inpainting(image: Picture, fill: Mask, repaint: tuple[int, int] | None, steps: int) -> Edit:
    """Draw the pixels of `fill` anew, on a grid of `steps` steps; with `repaint` going back up."""
    order = np.arange(steps + 1) if repaint is None else repaint_order(steps, *repaint)

    def wrap(sampler: Sampler, pictures: Any) -> Sampler:
        image, fill = pictures
        painted = inpaint(sampler, image, ~fill)
        return painted if repaint is None else go_up_too(painted)

    return Edit(
        pictures=(as_floats(image), fill[None]),
        levels=lambda levels: Level(*(field[order] for field in levels)),
        wrap=wrap,
    )


def image_to_image(image: Picture, first: int) -> Edit:
    """Begin with `image`, noised to the level number `first` of the grid (SDEdit)."""

    def start(x_T: Images, levels: Level, alone: Any, pictures: Any, weights: Any) -> Images:
        return add_noise(first_of(levels), pictures[0], x_T)

    return Edit((as_floats(image),), levels=from_number(first), start=start)


def stochastic(a: Picture, b: Picture, num: int, first: int) -> Edit:
    """A row from `a` to `b`, mixed at the level number `first` of the grid with the same noise."""

    def start(x_T: Images, levels: Level, alone: Any, pictures: Any, weights: Any) -> Images:
        one, other = (jnp.broadcast_to(end, x_T.shape) for end in pictures)
        return mix_noisy(first_of(levels), (one, other), weights, (x_T, x_T))

    return Edit(*row(a, b, num), levels=from_number(first), start=start, one_noise=True)


def between_latents(a: Picture, b: Picture, num: int, *, self_condition: bool = False) -> Edit:
    """A row from `a` to `b` along the circle between the noises that DDIM finds for both."""

    def start(x_T: Images, levels: Level, alone: Any, pictures: Any, weights: Any) -> Images:
        both = jnp.concatenate(pictures)
        found = latents(invert_ddim(), alone(2), levels, both, self_condition=self_condition)
        one, other = (jnp.broadcast_to(end, x_T.shape) for end in jnp.split(found, 2))
        return slerp(one, other, weights)

    return Edit(*row(a, b, num), start=start, one_noise=True)


def row(
    a: Picture, b: Picture, num: int
) -> tuple[tuple[Any, Any], Callable[[Int[np.ndarray, " b"]], Any]]:
    """Both ends, and for images of given numbers how far along each lies, from 0 to 1."""
    return (as_floats(a), as_floats(b)), lambda numbers: np.minimum(numbers / (num - 1), 1.0)


def from_number(first: int) -> Callable[[Level], Level]:
    """A grid of levels from number `first` on."""
    return lambda levels: Level(*(field[first:] for field in levels))


def first_of(levels: Level) -> Level:
    """The level at which a chain starts."""
    return Level(*(field[0] for field in levels))


def as_floats(image: Picture) -> Float[np.ndarray, "1 h w c"]:
    """0..255 to [-1, 1], as a batch of one image."""
    return image[None] / 127.5 - 1


def read_image(path: Path, image_shape: tuple[int, int, int]) -> Picture:
    """The picture in a file, in the size and colours of the run. Raises UserError if none fits."""
    height, width, channels = image_shape
    image = read_picture(path, Form(height if height == width else None, channels))
    if image.shape != image_shape:
        raise UserError(
            f"{path} is {image.shape[1]}x{image.shape[0]}, but the images of this run, which are "
            f"not square, are {width}x{height}: resize it"
        )
    return image


def read_with_mask(image: Path, mask: Path, image_shape: tuple[int, int, int]) -> tuple[Any, Any]:
    """The picture, and which pixels are drawn anew. Raises UserError for a mask of another size."""
    sizes = [size_of(image), size_of(mask)]
    if sizes[0] != sizes[1] and sizes[1] != (image_shape[1], image_shape[0]):
        (width, height), (mask_width, mask_height) = sizes
        raise UserError(
            f"--mask {mask} is {mask_width}x{mask_height}, but --inpaint {image} is "
            f"{width}x{height}: draw the mask on a copy of the picture"
        )
    pixels, shades = read_image(image, image_shape), read_image(mask, (*image_shape[:2], 1))
    fill = shades >= 128
    if not fill.any():
        raise UserError(f"--mask {mask} has no white pixel: nothing would be drawn anew")
    return pixels, fill


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) of the picture in a file, as it is shown."""
    height, width, _ = read_picture(path, Form(channels=1)).shape
    return width, height
