"""Measure how fast batches can be read from each kind of source and from device memory."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_ddpm.data.loader import batches
from jax_ddpm.data.sources import ImageSource, open_source
from jax_ddpm.data.tfds_writer import write_prepared
from jax_ddpm.devices.layout import replicate
from jax_ddpm.files.images import save_png
from jax_ddpm.jobs.bench import timing


@dataclass(frozen=True)
class DataArgs:
    """Read the embedded images as arrays, from files, prepared for TFDS, and on the device."""

    batch_size: int = 128
    """Images per batch."""
    batches: int = 40
    """Batches per round."""
    rounds: int = 5
    """Number of times that each source is measured."""
    images: int = 4000
    """Number of images to write to files."""
    image_size: int | None = None
    """Side to which images are resized when they are read; None: keep their 28 pixels."""
    channels: int | None = None
    """1: grey, 3: colour; None: grey."""
    out: Path | None = None
    """JSON file to write the results to."""


def bench_data(args: DataArgs) -> list[dict[str, Any]]:
    """Measure reading from every source, print a table, and return its rows."""
    with tempfile.TemporaryDirectory() as folder:
        sources = dict(open_every_source(args, Path(folder)))
        contestants = {name: make_reader(source, args) for name, source in sources.items()}
        contestants["device, gathered in the step"] = make_gatherer(sources["memory"], args)
        times = timing.time_in_turn(contestants, rounds=args.rounds)
    rows = timing.make_rows(times, args.batch_size * args.batches, "images")
    timing.print_rows(rows)
    timing.save_rows(args.out, {"args": str(args)}, rows)
    return rows


def open_every_source(args: DataArgs, folder: Path) -> Iterator[tuple[str, ImageSource]]:
    """Write the same images for each kind of source, and open them as training does."""
    source = open_source("embedded")
    images, labels = source.images[: args.images], source.labels[: args.images]
    form: dict[str, Any] = {"image_size": args.image_size, "channels": args.channels or 1}
    np.save(folder / "images.npy", images)
    np.savez_compressed(folder / "images.npz", images=images, labels=labels)
    pictures = folder / "pictures"
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        save_png(pictures / str(label) / f"{i:05d}.png", image)
    write_prepared({"train": ImageSource(images, labels)}, "prepared_images", folder / "tfds")
    yield "memory", open_source("embedded", **form)
    yield "npy", open_source("arrays", folder / "images.npy", **form)
    yield "npz", open_source("arrays", folder / "images.npz", **form)
    yield "folder of PNG", open_source("folder", pictures, **form)
    yield "TFDS array_record", open_source("prepared_images", folder / "tfds", **form)
    # Random crops force decoding on demand, as for data that does not fit in memory.
    form |= {"crop": "random", "image_size": args.image_size or images.shape[1]}
    yield "folder of PNG, on demand", open_source("folder", pictures, **form)
    yield "TFDS array_record, on demand", open_source("prepared_images", folder / "tfds", **form)


def make_reader(source: ImageSource, args: DataArgs) -> Callable[[], object]:
    """Make a function that reads the next shuffled batches, as training does."""
    stream = batches(source, args.batch_size, seed=0)

    def run() -> None:
        for _ in range(args.batches):
            next(stream)

    return run


def make_gatherer(source: ImageSource, args: DataArgs) -> Callable[[], object]:
    """Make a function that gathers batches from images on the device."""
    pixels = replicate(np.asarray(source.images), "jit")
    numbers = np.random.default_rng(0).integers(0, len(pixels), (args.batches, args.batch_size))
    gather = jax.jit(lambda pixels, numbers: jnp.take(pixels, numbers, axis=0))

    def run() -> None:
        for batch in numbers:
            jax.block_until_ready(gather(pixels, batch))

    return run
