"""Feed each call of the compiled step: batches, or their indices, for one step or more."""

from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np

from jax_ddpm.data.loader import batches
from jax_ddpm.data.sources import ImageSource
from jax_ddpm.errors import UserError
from jax_ddpm.training.step import Indexed, StepInput

DataOnDevice = Literal["auto", "always", "never"]
AUTO_BYTES = 2**30  # "auto" keeps data sets of at most 1 GiB on the devices


def fits_on_device(source: ImageSource, wanted: DataOnDevice) -> bool:
    """Whether to keep all images on the devices: "always", "never", or if they are small ("auto").

    Only images in memory can be kept there; `load_into_memory` decodes the others.
    """
    images = source.images
    if wanted == "never" or not isinstance(images, np.ndarray):
        return False
    return wanted == "always" or images.nbytes <= AUTO_BYTES


def load_into_memory(source: ImageSource, wanted: DataOnDevice) -> ImageSource:
    """Load every image of `source` into memory if `wanted` is "always".

    Raises UserError if they do not fit.
    """
    if wanted != "always" or isinstance(source.images, np.ndarray):
        return source
    shape = (len(source.images), *source.image_shape)
    try:
        pixels = np.empty(shape, np.uint8)
        for i in range(len(pixels)):
            pixels[i] = source.images[i]
    except MemoryError as error:
        raise UserError(
            f"--train.data-on-device always: {shape[0]:,} images take "
            f"{np.prod(shape) / 2**30:.1f} GiB, more than the free memory: use auto or never"
        ) from error
    return source._replace(images=pixels)


def plan_calls(first_step: int, last_step: int, steps_per_call: int) -> Iterator[range]:
    """Plan the steps of each call; all but the first start at a multiple of `steps_per_call`."""
    step = first_step
    while step < last_step:
        end = min((step // steps_per_call + 1) * steps_per_call, last_step)
        yield range(step, end)
        step = end


def make_feed(
    source: ImageSource,
    batch_size: int,
    seed: int,
    *,
    start_step: int,
    end_step: int,
    steps_per_call: int = 1,
    on_device: tuple[Any, Any] | None = None,
    process: tuple[int, int] = (0, 1),
) -> Iterator[tuple[StepInput, int]]:
    """Yield the batch and number of steps for each call, from `start_step` up to `end_step`.

    With `steps_per_call` 1, arrays are [b, ...]; else [k, b, ...], where k is smaller for a call
    that is cut short. If the images and labels are on the devices, given as `on_device`, a batch is
    `Indexed`. `process` is (index, count); each process gets only its part of every batch.
    """
    if on_device is not None:  # batches are then made of indices
        source = ImageSource(np.arange(len(source.images), dtype=np.int32), source.labels)
    stream = batches(source, batch_size, seed, start_step=start_step, process=process)
    for steps in plan_calls(start_step, end_step, steps_per_call):
        parts = [next(stream) for _ in steps]
        batch = parts[0] if steps_per_call == 1 else jax.tree.map(lambda *a: np.stack(a), *parts)
        yield batch if on_device is None else Indexed(batch.pixels, *on_device), len(steps)
