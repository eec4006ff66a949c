"""Batches of uint8 images, shuffled per epoch, as a pure function of seed and step."""

from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import UInt8

from jax_ddpm.data.sources import ImageSource
from jax_ddpm.errors import UserError

Batch = UInt8[np.ndarray, "b h w c"]


def batches(
    source: ImageSource, batch_size: int, seed: int, *, start_step: int = 0
) -> Iterator[Batch]:
    """An endless iterator of uint8 batches [b, h, w, c] that begins with that of `start_step`.

    Every epoch has its own order and no image is dropped: a batch may span two epochs. The batch of
    a step depends on `seed` and the step alone, so a continued run sees the data that an
    uninterrupted one would have seen.
    """
    dataset = grain.MapDataset.source(source.images).seed(seed).shuffle().repeat().batch(batch_size)
    iterator = iter(
        dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    )
    iterator.set_state({"next_index": start_step})
    return iterator


def require_full_batch(source: ImageSource, batch_size: int) -> None:
    """Raise UserError if there are fewer images than one batch."""
    if batch_size > len(source.images):
        raise UserError(
            f"--train.batch-size {batch_size} is larger than the data set, "
            f"which has {len(source.images)} images"
        )
