"""Batches of uint8 images and labels, shuffled per epoch; they depend only on seed and step."""

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from jax_ddpm.data.base import ImageSource
from jax_ddpm.errors import UserError


class Batch(NamedTuple):
    """Images and their class labels."""

    pixels: UInt8[np.ndarray, "b h w c"]
    labels: Int[np.ndarray, " b"]


class Examples:
    """Images with their labels by index, as Grain expects them."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source.images)

    def __getitem__(self, index: int) -> Batch:
        pixels, label = self.source.images[index], self.source.labels[index]
        return Batch(pixels, np.asarray(label, np.int32))


def batches(
    source: ImageSource,
    batch_size: int,
    seed: int,
    *,
    start_step: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Iterate over batches without end, starting with the batch of `start_step`.

    Each epoch has its own order and no image is dropped: a batch may span two epochs. The batch of
    a step depends only on `seed` and the step, so a resumed run sees the same data as an
    uninterrupted one. `process` is (index, count): only part `index` of `count` equal parts of each
    batch is read. Raises UserError if the batch does not divide into that many parts.

    Examples:
        >>> import jax_ddpm as jd
        >>> batch = next(jd.batches(jd.open_source("embedded"), batch_size=16, seed=0))
        >>> batch.pixels.shape, batch.labels.shape
        ((16, 28, 28, 1), (16,))
    """
    import grain  # importing it takes a second

    index, count = process
    if batch_size % count:
        raise UserError(f"--train.batch-size {batch_size} does not divide over {count} processes")
    # The stream has no end, so nothing is dropped, but Grain's other way of counting its batches
    # overflows for batches of one.
    parts = _stream_examples(source, seed).batch(batch_size // count, drop_remainder=True)
    mine = parts if count == 1 else parts[index::count]
    threads = _count_threads(source)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4, threads))
    iterator = iter(mine.to_iter_dataset(options))
    iterator.set_state({"next_index": start_step})
    return iterator


def batch_indices(num_images: int, batch_size: int, seed: int, step: int) -> Int[np.ndarray, " b"]:
    """The indices of the images in the batch of `step`, as in `batches`. Steps count from 0."""
    first, order = step * batch_size, _shuffle_indices(num_images, seed)
    return np.array([order[i] for i in range(first, first + batch_size)], np.int32)


def _stream_examples(source: ImageSource, seed: int) -> Any:
    """Make the endless stream of examples, a grain.MapDataset."""
    import grain

    form = getattr(source.images, "form", None)
    if form is None or not form.is_random:
        return grain.MapDataset.source(Examples(source)).seed(seed).shuffle().repeat()

    def cut(index: int, rng: np.random.Generator) -> Batch:
        horizontal, vertical = rng.random(2)
        pixels = source.images.cut_at(index, (horizontal, vertical))
        return Batch(pixels, np.asarray(source.labels[index], np.int32))

    # The random generator depends only on the position in the stream.
    return _shuffle_indices(len(source.images), seed).random_map(cut)


@lru_cache(maxsize=4)
def _shuffle_indices(num_images: int, seed: int) -> Any:
    """Make the endless stream of image indices, a grain.MapDataset."""
    import grain

    return grain.MapDataset.range(num_images).seed(seed).shuffle().repeat()


def _count_threads(source: ImageSource) -> int:
    """One thread is enough to copy arrays; decoding uses every core, up to 16."""
    return 1 if isinstance(source.images, np.ndarray) else min(16, os.cpu_count() or 1)


def require_full_batch(source: ImageSource, batch_size: int) -> None:
    """Raise UserError if the data set is smaller than one batch."""
    if batch_size > len(source.images):
        raise UserError(
            f"--train.batch-size {batch_size} is larger than the data set, "
            f"which has {len(source.images)} images"
        )


def require_labels(
    source: ImageSource, num_labels: int | None, null_label: int | None = None
) -> None:
    """Raise UserError if the data has a class that a network with `num_labels` labels lacks.

    `null_label` is the additional label that the network reserves for "no class".
    """
    if num_labels is None or (largest := int(source.labels.max())) < num_labels:
        return
    reserved = "" if null_label is None else f", because {null_label} stands for no class"
    raise UserError(
        f"the data has class {largest}, but the network has only 0 to {num_labels - 1}{reserved}: "
        "give it more classes (see --model)"
    )
