"""Batches of uint8 images and labels, shuffled per epoch, as a pure function of seed and step."""

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Int, UInt8

from jax_ddpm.data.sources import ImageSource
from jax_ddpm.errors import UserError


class Batch(NamedTuple):
    """Images and their class labels."""

    pixels: UInt8[np.ndarray, "b h w c"]
    labels: Int[np.ndarray, " b"]


class Examples:
    """Image and label by number, as Grain wants them."""

    def __init__(self, source: ImageSource) -> None:
        """All examples of `source`."""
        self.source = source

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.source.images)

    def __getitem__(self, index: int) -> Batch:
        """Example number `index`."""
        images, labels = self.source
        return Batch(images[index], np.asarray(labels[index], np.int32))


def batches(
    source: ImageSource,
    batch_size: int,
    seed: int,
    *,
    start_step: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """An endless iterator of batches that begins with that of `start_step`.

    Every epoch has its own order and no image is dropped: a batch may span two epochs. The batch of
    a step depends on `seed` and the step alone, so a continued run sees the data that an
    uninterrupted one would have seen. Of `process` (index, count), only the rows of that process
    are read: part number `index` of `count` equal ones. Raises UserError if there are no such.
    """
    index, count = process
    if batch_size % count:
        raise UserError(f"--train.batch-size {batch_size} does not divide over {count} processes")
    parts = _examples(source, seed).batch(batch_size // count)
    mine = parts if count == 1 else parts[index::count]
    iterator = iter(mine.to_iter_dataset(_read_options(source)))
    iterator.set_state({"next_index": start_step})
    return iterator


def batch_indices(num_images: int, batch_size: int, seed: int, step: int) -> Int[np.ndarray, " b"]:
    """The numbers of the images in the whole batch of step 0, 1, ...: those of `batches`."""
    first, order = step * batch_size, _order(num_images, seed)
    return np.array([order[i] for i in range(first, first + batch_size)], np.int32)


def _examples(source: ImageSource, seed: int) -> grain.MapDataset:
    """The stream of examples; where pictures are cut at random, by the place in the stream."""
    if getattr(getattr(source.images, "form", None), "crop", None) != "random":
        return grain.MapDataset.source(Examples(source)).seed(seed).shuffle().repeat()

    def example(index: int, rng: np.random.Generator) -> Batch:
        horizontal, vertical = rng.random(2)
        pixels = source.images.at(index, (horizontal, vertical))
        return Batch(pixels, np.asarray(source.labels[index], np.int32))

    return _order(len(source.images), seed).random_map(example)


@lru_cache(maxsize=4)
def _order(num_images: int, seed: int) -> grain.MapDataset:
    return grain.MapDataset.range(num_images).seed(seed).shuffle().repeat()


def _read_options(source: ImageSource) -> grain.ReadOptions:
    """One thread copies arrays fast enough; decoding is shared by as many as there are cores."""
    in_memory = isinstance(source.images, np.ndarray)
    threads = 1 if in_memory else min(16, os.cpu_count() or 1)
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4, threads))


def require_full_batch(source: ImageSource, batch_size: int) -> None:
    """Raise UserError if there are fewer images than one batch."""
    if batch_size > len(source.images):
        raise UserError(
            f"--train.batch-size {batch_size} is larger than the data set, "
            f"which has {len(source.images)} images"
        )


def require_labels(
    source: ImageSource, num_labels: int | None, null_label: int | None = None
) -> None:
    """Raise UserError if the data has a class that a network of `num_labels` does not have.

    `null_label` is one more, that the network keeps for "no class".
    """
    if num_labels is None or int(source.labels.max()) < num_labels:
        return
    kept = "" if null_label is None else f", because {null_label} stands for no class"
    raise UserError(
        f"the data has class {source.labels.max()}, but the network only 0 to {num_labels - 1}"
        f"{kept}: give it more classes (see --model)"
    )
